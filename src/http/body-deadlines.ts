import { Socket } from 'node:net'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { clientErrorAnswer } from './errors.ts'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** The route streams a body of any length: there is a deadline for each piece, and none for the whole. */
    streamsBody?: boolean
  }
}

/** Deadlines in ms. */
export interface BodyTimes {
  /** For the whole of an ordinary body. */
  whole: number
  /** For the next bytes of a streamed body. */
  idle: number
  /** For a client that still sends after the answer: closed at once, its connection could lose the answer. */
  linger: number
}

/** Checks within the deadline for a whole body. */
const checksPerDeadline = 20

const defaultTimes: BodyTimes = { whole: 60_000, idle: 60_000, linger: 10_000 }

/** Whether a request has a body, by its headers. */
export const hasBody = ({ headers }: FastifyRequest) =>
  headers['transfer-encoding'] !== undefined || Number(headers['content-length']) > 0

/** Ends the connection of a client that sends its body too slowly, with 408 unless the answer has begun. */
export function useBodyDeadlines(app: FastifyInstance, publicUrl: () => string, times: BodyTimes = defaultTimes): void {
  /** The requests whose bodies are incomplete: how to end each, and when. One timer serves all. */
  const deadlines = new Map<() => void, number>()
  const endLateOnes = () => {
    const now = performance.now()
    for (const [end, deadline] of deadlines) {
      if (deadline > now) return // the map is in the order of the deadlines
      deadlines.delete(end)
      end()
    }
  }
  const timer = setInterval(endLateOnes, times.whole / checksPerDeadline).unref()
  app.addHook('onClose', async () => clearInterval(timer))

  app.addHook('onRequest', (request, reply, done) => {
    done()
    const { raw } = request
    const { socket } = raw
    // An injected request has no connection.
    if (!hasBody(request) || !(socket instanceof Socket)) return
    const end = () => {
      if (!reply.raw.headersSent) {
        reply.raw.statusCode = 408 // for the log
        socket.write(clientErrorAnswer('ERR_HTTP_REQUEST_TIMEOUT', request.id, publicUrl()))
      }
      socket.destroySoon()
    }
    const isStreamed = request.routeOptions.config.streamsBody === true
    if (isStreamed) raw.setTimeout(times.idle, end)
    else deadlines.set(end, performance.now() + times.whole)
    raw.on('end', () => {
      deadlines.delete(end)
      if (isStreamed) raw.setTimeout(0) // the handler may take longer
    })
    reply.raw.on('finish', () => {
      deadlines.delete(end)
      if (raw.complete) return
      const lingering = setTimeout(() => socket.destroy(), times.linger)
      raw.once('close', () => clearTimeout(lingering))
      raw.resume() // unread, the body could not end, nor would the close of the connection be seen
    })
    raw.on('close', () => deadlines.delete(end))
  })
}
