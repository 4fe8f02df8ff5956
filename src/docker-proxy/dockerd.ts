import http, { type IncomingMessage } from 'node:http'
import https from 'node:https'
import type { Socket } from 'node:net'
import { pipeline, type Readable } from 'node:stream'
import { text } from 'node:stream/consumers'
import { connectionTo, type DockerdAddress } from '#sandbox/docker/docker-client.ts'
import { Refusal } from './refusal.ts'

/** A call that is sent to dockerd, written by the proxy. */
export interface Outgoing {
  method: string
  path: string
  query?: Record<string, string>
  /** An object is sent as JSON, a stream as a tar. */
  body?: object | Readable
  /** Whether the connection is to become a stream to a program. */
  upgrade?: boolean
}

interface Answer {
  head: IncomingMessage
  /** The stream to a program, if dockerd has opened one. */
  stream: Socket | null
}

export interface Dockerd {
  /**
   * Resolves with the head of the answer. The signal ends the call and the answer. Throws a Refusal without an answer.
   */
  send(call: Outgoing, signal: AbortSignal): Promise<Answer>
  /** Gets the JSON at a path. Throws a Refusal with dockerd's message for any status but 200. */
  ask<T>(path: string, signal: AbortSignal, query?: Record<string, string>): Promise<T>
}

const noAnswer = (cause: Error) => new Refusal(502, `dockerd does not answer: ${cause.message}`)

/** Creates a client of the real dockerd. Throws a StartupError for a bad address. */
export function createDockerd(address: DockerdAddress): Dockerd {
  const { protocol, ...connection } = connectionTo(address)
  const { Agent, request } = protocol === 'https' ? https : http
  // A connection for each call: dockerd may close a kept one just when the next call is sent.
  const agent = new Agent({ keepAlive: false })

  function send({ method, path, query = {}, body, upgrade }: Outgoing, signal: AbortSignal): Promise<Answer> {
    const { promise, resolve, reject } = Promise.withResolvers<Answer>()
    const search = new URLSearchParams(query).toString()
    const isStream = body !== undefined && 'pipe' in body
    const json = body === undefined || isStream ? '' : JSON.stringify(body)
    // With TLS the certificate must be for the host of the header.
    const headers: Record<string, string | number> = 'socketPath' in connection ? { host: 'docker' } : {}
    if (isStream) headers['content-type'] = 'application/x-tar'
    else if (method === 'POST') headers['content-length'] = Buffer.byteLength(json)
    if (json) headers['content-type'] = 'application/json'
    if (upgrade) Object.assign(headers, { connection: 'Upgrade', upgrade: 'tcp' })
    const options = { ...connection, agent, method, path: search ? `${path}?${search}` : path, headers, signal }
    const outgoing = request(Object.assign(options, { allowHalfOpen: true }))
    outgoing.on('response', (head) => resolve({ head, stream: null }))
    outgoing.on('upgrade', (head, stream: Socket, first: Buffer) => {
      stream.on('error', () => {}) // the reader sees the end
      if (first.length > 0) stream.unshift(first)
      resolve({ head, stream })
    })
    outgoing.on('error', (cause) => reject(noAnswer(cause)))
    if (isStream) pipeline(body, outgoing, () => {})
    else outgoing.end(json)
    return promise
  }

  return {
    send,
    async ask<T>(path: string, signal: AbortSignal, query?: Record<string, string>) {
      const { head } = await send({ method: 'GET', path, ...(query && { query }) }, signal)
      const body = JSON.parse(await text(head).catch((cause) => Promise.reject(noAnswer(cause))))
      if (head.statusCode !== 200) throw new Refusal(head.statusCode ?? 502, body.message)
      return body as T
    },
  }
}
