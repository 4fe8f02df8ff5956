import { Socket } from 'node:net'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { texts } from '#platform/texts.ts'
import { clientErrorAnswer } from './errors.ts'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** The route streams a body of any length: it has no deadline for the whole, and a least rate. */
    streamsBody?: boolean
  }
}

/** Deadlines in ms. */
export interface BodyTimes {
  /** For the whole of an ordinary body, and for each `leastBytes` of a streamed one. */
  whole: number
  /** For a client that still sends after the answer: closed at once, its connection could lose the answer. */
  linger: number
}

/** Checks within the deadline for a whole body. */
const checksPerDeadline = 20
/** Slower than any network on which people upload files: whoever sends less only holds the upload open. */
const leastBytes = 64 * 1024

const defaultTimes: BodyTimes = { whole: 60_000, linger: 10_000 }

/** Whether a request has a body, by its headers. */
export const hasBody = ({ headers }: FastifyRequest) =>
  headers['transfer-encoding'] !== undefined || Number(headers['content-length']) > 0

/** Ends the connection of a client that sends its body too slowly, with 408 unless the answer has begun. */
export function useBodyDeadlines(app: FastifyInstance, publicUrl: () => string, times: BodyTimes = defaultTimes): void {
  /** The requests whose bodies are incomplete: what to do with each, and when. One timer serves all. */
  const deadlines = new Map<() => void, number>()
  const lookAtLateOnes = () => {
    const now = performance.now()
    for (const [look, deadline] of deadlines) {
      if (deadline > now) return // the map is in the order of the deadlines
      deadlines.delete(look)
      look()
    }
  }
  const timer = setInterval(lookAtLateOnes, times.whole / checksPerDeadline).unref()
  app.addHook('onClose', async () => clearInterval(timer))

  app.addHook('onRequest', (request, reply, done) => {
    done()
    const { raw } = request
    const { socket } = raw
    // An injected request has no connection.
    if (!hasBody(request) || !(socket instanceof Socket)) return
    const isStreamed = request.routeOptions.config.streamsBody === true
    let receivedBefore = socket.bytesRead
    const look = () => {
      const received = socket.bytesRead - receivedBefore
      if (isStreamed && received >= leastBytes) {
        receivedBefore += received
        deadlines.set(look, performance.now() + times.whole)
        return
      }
      if (!reply.raw.headersSent) {
        const seconds = times.whole / 1000
        const text = isStreamed ? texts.uploadTooSlow(leastBytes, seconds) : texts.bodyTooSlow(seconds)
        reply.raw.statusCode = 408 // for the log
        socket.write(clientErrorAnswer('ERR_HTTP_REQUEST_TIMEOUT', request.id, publicUrl(), text))
      }
      socket.destroySoon()
    }
    deadlines.set(look, performance.now() + times.whole)
    raw.on('end', () => deadlines.delete(look)) // the handler may take longer
    reply.raw.on('finish', () => {
      deadlines.delete(look)
      if (raw.complete) return
      const lingering = setTimeout(() => socket.destroy(), times.linger)
      raw.once('close', () => clearTimeout(lingering))
      raw.resume() // unread, the body could not end, nor would the close of the connection be seen
    })
    raw.on('close', () => deadlines.delete(look))
  })
}
