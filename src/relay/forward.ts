import type { IncomingHttpHeaders, ServerResponse } from 'node:http'
import { Readable } from 'node:stream'
import type { Dispatcher } from 'undici'
import { retryAfterMs, toClient } from './headers.ts'

interface Forwarded {
  path: string
  method: string
  headers: Record<string, string | string[]>
  /** The body as its bytes come. */
  body: AsyncIterable<Buffer> | undefined
  /** Ends the call. */
  signal: AbortSignal
}

interface ForwardEvents {
  answer(status: number, headers: IncomingHttpHeaders, waitMs: number | null): void
  chunk(bytes: Buffer): void
}

/**
 * Sends a call to its vendor, and the answer back, byte for byte, as they come: neither side is read faster than the
 * other one reads. Resolves once this process has sent the whole answer to the client. Rejects with the signal's
 * reason, or the errors of the body and of undici; the answer may have begun.
 */
export function forward(
  pool: Dispatcher,
  { path, method, headers, body, signal }: Forwarded,
  response: ServerResponse,
  events: ForwardEvents,
): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  let controller: Dispatcher.DispatchController | undefined
  /** The pieces of the answer that this process still holds. */
  let held = 0
  let isWhole = false
  // Not earlier: Node.js treats the connection of an ended answer as idle, and may close it with unsent data.
  const endOnceSent = () => {
    if (!isWhole || held > 0) return
    response.end()
    resolve()
  }
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
      body: body ? Readable.from(body, { objectMode: false }) : null,
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
        held += 1
        const hasRoom = response.write(chunk, () => {
          held -= 1
          endOnceSent()
        })
        if (hasRoom || response.destroyed) return
        started.pause()
        response.once('drain', () => started.resume())
      },
      onResponseEnd() {
        isWhole = true
        endOnceSent()
      },
      onResponseError(_started, error) {
        reject(signal.aborted ? signal.reason : error)
      },
    },
  )
  return promise.finally(() => signal.removeEventListener('abort', abort))
}
