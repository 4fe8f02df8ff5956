import { Agent, type IncomingMessage, request } from 'node:http'
import type { Socket } from 'node:net'
import { pipeline, type Readable } from 'node:stream'
import { text } from 'node:stream/consumers'
import { addressOf } from '#sandbox/docker/engine.ts'
import { Refusal } from './refusal.ts'

/** A call that dockerd is sent: all of it is the proxy's own words. */
export interface Outgoing {
  method: string
  path: string
  query?: Record<string, string>
  /** Sent as JSON, or, a stream, as a tar. */
  body?: object | Readable
  /** Whether the connection is to become a stream to a program. */
  upgrade?: boolean
}

interface Answer {
  head: IncomingMessage
  /** The stream to a program, once dockerd has agreed to it. */
  stream: Socket | null
}

export interface Dockerd {
  /** Fulfilled with the answer's head. The signal ends the call and the answer. Throws a Refusal when there is no answer. */
  send(call: Outgoing, signal: AbortSignal): Promise<Answer>
  /** What dockerd tells at a path. Throws a Refusal with its own words when it does not. */
  ask<T>(path: string, signal: AbortSignal, query?: Record<string, string>): Promise<T>
}

const gone = (cause: Error) => new Refusal(502, `dockerd does not answer: ${cause.message}`)

/** The way to the real dockerd. Throws a StartupError for words that name no address. */
export function createDockerd(host: string): Dockerd {
  const address = addressOf(host)
  // A connection for each call: one that was kept may be gone when the next call is sent.
  const agent = new Agent({ keepAlive: false })

  function send({ method, path, query = {}, body, upgrade }: Outgoing, signal: AbortSignal): Promise<Answer> {
    const { promise, resolve, reject } = Promise.withResolvers<Answer>()
    const search = new URLSearchParams(query).toString()
    const isStream = body !== undefined && 'pipe' in body
    const json = body === undefined || isStream ? '' : JSON.stringify(body)
    const headers: Record<string, string | number> = { host: 'docker' }
    if (isStream) headers['content-type'] = 'application/x-tar'
    else if (method === 'POST') headers['content-length'] = Buffer.byteLength(json)
    if (json) headers['content-type'] = 'application/json'
    if (upgrade) Object.assign(headers, { connection: 'Upgrade', upgrade: 'tcp' })
    const options = { ...address, agent, method, path: search ? `${path}?${search}` : path, headers, signal }
    const asking = request(Object.assign(options, { allowHalfOpen: true }))
    asking.on('response', (head) => resolve({ head, stream: null }))
    asking.on('upgrade', (head, stream: Socket, first: Buffer) => {
      stream.on('error', () => {}) // whoever passes it on learns of its end
      if (first.length > 0) stream.unshift(first)
      resolve({ head, stream })
    })
    asking.on('error', (cause) => reject(gone(cause)))
    if (isStream) pipeline(body, asking, () => {})
    else asking.end(json)
    return promise
  }

  return {
    send,
    async ask<T>(path: string, signal: AbortSignal, query?: Record<string, string>) {
      const { head } = await send({ method: 'GET', path, ...(query && { query }) }, signal)
      const words = await text(head).catch((cause) => Promise.reject(gone(cause)))
      const told = JSON.parse(words)
      if (head.statusCode !== 200) throw new Refusal(head.statusCode ?? 502, told.message)
      return told as T
    },
  }
}
