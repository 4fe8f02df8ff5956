import { connect } from 'node:net'
import { answerMessages } from './program.ts'

/** Requests sent in turn by so many connections, each of which sends its next when it has its answer. */
export interface Load {
  /** The connections are spread over them. */
  ports: number[]
  requests: { method: string; path: string; headers: Record<string, string>; body?: string }[]
  connections: number
  ms: number
  /** The status every answer must have. */
  status: number
}

export interface Measured {
  perSecond: number
  p50Ms: number
  p99Ms: number
}

function toBytes({ method, path, headers, body = '' }: Load['requests'][number]): Buffer {
  const lines = Object.entries({ host: 'localhost', ...headers, 'content-length': Buffer.byteLength(body) })
  return Buffer.from(
    `${method} ${path} HTTP/1.1\r\n${lines.map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n${body}`,
  )
}

/** Whether an answer is whole: one with a length, or a stream in chunks. */
function isWhole(bytes: Buffer): boolean {
  const end = bytes.indexOf('\r\n\r\n')
  if (end < 0) return false
  const head = bytes.toString('latin1', 0, end)
  const length = /\r\ncontent-length: *(\d+)/i.exec(head)?.[1]
  if (length !== undefined) return bytes.length >= end + 4 + Number(length)
  if (!/\r\ntransfer-encoding: *chunked/i.test(head)) throw new Error('an answer without a length')
  return bytes.toString('latin1', bytes.length - 7) === '\r\n0\r\n\r\n'
}

// Plain sockets: the lighter the load, the more of the machine is left for what is measured.
async function run({ ports, requests, connections, ms, status }: Load): Promise<Measured> {
  const ready = requests.map(toBytes)
  const tookMs: number[] = []
  let sent = 0
  const startedAt = performance.now()

  const connection = (port: number) =>
    new Promise<void>((resolve, reject) => {
      const socket = connect(port, '127.0.0.1')
      let received: Buffer = Buffer.alloc(0)
      let sentAt = 0
      function send(): void {
        sentAt = performance.now()
        if (sentAt - startedAt >= ms) {
          socket.destroy()
          resolve()
          return
        }
        socket.write(ready[sent % ready.length] as Buffer)
        sent += 1
      }
      socket.setNoDelay(true)
      socket.on('connect', send)
      socket.on('error', reject)
      socket.on('end', () => reject(new Error('the connection was closed')))
      socket.on('data', (chunk) => {
        received = received.length > 0 ? Buffer.concat([received, chunk]) : chunk
        if (!isWhole(received)) return
        if (received.toString('latin1', 9, 12) !== String(status))
          return reject(new Error(received.toString('utf8', 0, 2000)))
        tookMs.push(performance.now() - sentAt)
        received = Buffer.alloc(0)
        send()
      })
    })

  await Promise.all(
    Array.from({ length: connections }, (_, index) => connection(ports[index % ports.length] as number)),
  )
  const seconds = (performance.now() - startedAt) / 1000
  tookMs.sort((a, b) => a - b)
  const at = (share: number) => tookMs[Math.min(tookMs.length - 1, Math.floor(tookMs.length * share))] ?? 0
  return { perSecond: tookMs.length / seconds, p50Ms: at(0.5), p99Ms: at(0.99) }
}

answerMessages(run)
