import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { CoreV1Api, type KubeConfig } from '@kubernetes/client-node'

const port = 53
/** Of names, in seconds: none is kept. */
const ttl = 0
const [typeA, classIn] = [1, 1]
const headerBytes = 12
/** This is an answer, recursion was wanted and is available. */
const answered = 0x8180
const noSuchName = 3

/** The labels of the name that a query asks for, its type, and where the question ends. */
function questionIn(query: Buffer): { labels: string[]; type: number; end: number } {
  const labels: string[] = []
  let at = headerBytes
  for (let length = query.readUInt8(at); length > 0; length = query.readUInt8(at)) {
    labels.push(query.toString('latin1', at + 1, at + 1 + length).toLowerCase())
    at += 1 + length
  }
  return { labels, type: query.readUInt16BE(at + 1), end: at + 5 }
}

function answerTo(query: Buffer, address: string | null): Buffer {
  const { type, end } = questionIn(query)
  const hasAddress = address !== null && type === typeA
  const head = Buffer.alloc(headerBytes)
  query.copy(head, 0, 0, 2)
  head.writeUInt16BE(answered | (address === null ? noSuchName : 0), 2)
  head.writeUInt16BE(1, 4)
  head.writeUInt16BE(hasAddress ? 1 : 0, 6)
  const question = query.subarray(headerBytes, end)
  if (!hasAddress) return Buffer.concat([head, question])
  const record = Buffer.alloc(16)
  record.writeUInt16BE(0xc000 | headerBytes, 0) // the name of the question
  record.writeUInt16BE(typeA, 2)
  record.writeUInt16BE(classIn, 4)
  record.writeUInt32BE(ttl, 6)
  record.writeUInt16BE(4, 10)
  record.set(address.split('.').map(Number), 12)
  return Buffer.concat([head, question, record])
}

/**
 * Answers the names of Services, such as `a.namespace.svc.cluster.local`, with their addresses, at port 53 of `host`:
 * the cluster of the tests has no name server. There are no other names.
 */
export async function serveNames(admin: KubeConfig, host: string): Promise<{ close(): void }> {
  const api = admin.makeApiClient(CoreV1Api)
  async function addressOf([name = '', namespace = '', svc, ...domain]: string[]): Promise<string | null> {
    if (svc !== 'svc' || !['', 'cluster.local'].includes(domain.join('.'))) return null
    const found = await api.readNamespacedService({ name, namespace }).catch((error: { code?: number }) => {
      if (error.code === 404) return null
      throw error
    })
    return found?.spec?.clusterIP ?? null
  }
  const socket = createSocket('udp4')
  socket.on('message', (query, client) => {
    // Whoever gets no answer asks again.
    void addressOf(questionIn(query).labels)
      .then((address) => socket.send(answerTo(query, address), client.port, client.address))
      .catch(() => {})
  })
  socket.bind(port, host)
  await once(socket, 'listening')
  return { close: () => void socket.close() }
}
