import { connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'

/** What a client with a valid key does to an API for a while. Each resolves when the client has gone; none throws. */
export interface HostileClient {
  url: string
  key: string
  /** A running agent of the key's organization. */
  instanceId: string
  ms: number
}

const bodyBytes = 20 * 1024 * 1024 - 1024
const largeBody = Buffer.from(`{"model":"openclaw","input":[${'1,'.repeat(bodyBytes / 2 - 32)}1]}`)
const bodiesAtOnce = 8
const tricklesAtOnce = 100
const leaversAtOnce = 20

const headersOf = (key: string) => ({ authorization: `Bearer ${key}`, 'content-type': 'application/json' })

/** So many clients, each of which acts again as soon as it is done, until the time is over. */
const clients = (number: number, ms: number, act: (signal: AbortSignal, client: number) => Promise<unknown>) => {
  const signal = AbortSignal.timeout(ms)
  return Promise.all(
    Array.from({ length: number }, async (_, client) => {
      while (!signal.aborted) {
        await act(signal, client).catch(() => {}) // refused, or its API has just been killed
        await sleep(50)
      }
    }),
  )
}

/** Bodies of 20 MiB with ten million values. */
export const sendLargeBodies = ({ url, key, instanceId, ms }: HostileClient) =>
  clients(bodiesAtOnce, ms, async (signal) => {
    const path = `/v1/instances/${instanceId}/session/hostile/responses`
    const answer = await fetch(url + path, { method: 'POST', headers: headersOf(key), body: largeBody, signal })
    await answer.arrayBuffer()
  })

/** Bodies of which a byte comes now and then. */
export const trickleBodies = ({ url, key, instanceId, ms }: HostileClient) =>
  clients(tricklesAtOnce, ms, (signal) => {
    const { hostname, port, host } = new URL(url)
    const head = Object.entries({ host, ...headersOf(key), 'content-length': 100_000 })
    const { promise, resolve } = Promise.withResolvers<void>()
    const socket = connect(Number(port), hostname)
    socket.write(
      `PATCH /v1/instances/${instanceId} HTTP/1.1\r\n${head.map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n{`,
    )
    const timer = setInterval(() => socket.write(' '), 200)
    signal.addEventListener('abort', () => socket.destroy())
    socket.resume().on('error', () => {})
    socket.on('close', () => {
      clearInterval(timer)
      resolve()
    })
    return promise
  })

/** Turns and waits whose client leaves before it has an answer. */
export const leaveEarly = ({ url, key, instanceId, ms }: HostileClient) =>
  clients(leaversAtOnce, ms, async (signal, client) => {
    const left = AbortSignal.any([signal, AbortSignal.timeout(20 + client * 5)])
    const path = `/v1/instances/${instanceId}`
    if (client % 2 === 0) {
      await fetch(`${url}${path}/status?wait=stopped&timeout=60`, { headers: headersOf(key), signal: left })
    } else {
      const body = JSON.stringify({ model: 'openclaw', input: 'hello', stream: true })
      const options = { method: 'POST', headers: headersOf(key), body, signal: left }
      await (await fetch(`${url}${path}/session/leaver-${client}/responses`, options)).text()
    }
  })
