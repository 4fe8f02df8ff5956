import type { IncomingHttpHeaders, IncomingMessage, ServerResponse } from 'node:http'
import { Readable } from 'node:stream'
import type { Dispatcher } from 'undici'
import { retryAfterMs, toClient } from './headers.ts'

/** The client has sent more than a call may carry. */
export class BodyTooLarge extends Error {
  override name = 'BodyTooLarge'
}

/**
 * The body as it comes. Throws BodyTooLarge once it is longer than `maxBytes`. The connection stays open when nobody
 * reads on: the client gets an answer.
 */
async function* bodyOf(
  request: IncomingMessage,
  maxBytes: number,
  onChunk: (bytes: Buffer) => void,
): AsyncGenerator<Buffer> {
  let bytes = 0
  for await (const chunk of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    bytes += chunk.length
    if (bytes > maxBytes) throw new BodyTooLarge('the body of the call is too large')
    onChunk(chunk)
    yield chunk
  }
}

interface Forwarded {
  path: string
  method: string
  headers: Record<string, string | string[]>
  maxBodyBytes: number
  /** Ends the call. */
  signal: AbortSignal
}

interface ForwardEvents {
  asked(bytes: Buffer): void
  answer(status: number, headers: IncomingHttpHeaders, waitMs: number | null): void
  chunk(bytes: Buffer): void
}

/**
 * Sends a call to its vendor, and the answer back, byte for byte, each as it comes: neither side is read faster than
 * the other one reads. Resolves once the answer is handed to the connection of the client. Rejects with the signal's
 * reason, BodyTooLarge, or what undici throws; the answer may have begun.
 */
export function forward(
  pool: Dispatcher,
  { path, method, headers, maxBodyBytes, signal }: Forwarded,
  request: IncomingMessage,
  response: ServerResponse,
  events: ForwardEvents,
): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  let controller: Dispatcher.DispatchController | undefined
  const abort = () => {
    controller?.abort(signal.reason)
    reject(signal.reason)
  }
  if (signal.aborted) abort()
  else signal.addEventListener('abort', abort, { once: true })
  pool.dispatch(
    {
      path,
      method: method as Dispatcher.HttpMethod,
      headers,
      body: method === 'GET' ? null : Readable.from(bodyOf(request, maxBodyBytes, events.asked), { objectMode: false }),
    },
    {
      onRequestStart(started) {
        controller = started
        if (signal.aborted) started.abort(signal.reason)
      },
      onResponseStart(_started, status, answered) {
        if (status < 200) return
        events.answer(status, answered, retryAfterMs(answered))
        response.writeHead(status, toClient(answered))
        response.flushHeaders()
      },
      onResponseData(started, chunk) {
        if (response.destroyed) return
        events.chunk(chunk)
        if (response.write(chunk) || response.destroyed) return
        started.pause()
        response.once('drain', () => started.resume())
      },
      onResponseEnd() {
        response.end()
        resolve()
      },
      onResponseError(_started, error) {
        reject(signal.aborted ? signal.reason : error)
      },
    },
  )
  return promise.finally(() => signal.removeEventListener('abort', abort))
}
