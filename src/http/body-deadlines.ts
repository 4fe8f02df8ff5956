import { Socket } from 'node:net'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { texts } from '#errors/texts.ts'
import { clientErrorAnswer } from './errors.ts'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** The route streams a body of any length, which may take as long as the server's `requestTimeout`. */
    streamsBody?: boolean
  }
}

/** Deadlines in ms. */
export interface BodyTimes {
  /** Time for a whole ordinary body, or until the next bytes of a streamed one. */
  whole: number
  /** Time for a client that still sends after the answer: an immediate close could lose the answer. */
  linger: number
}

const defaultTimes: BodyTimes = { whole: 60_000, linger: 10_000 }

/** Whether a request has a body, by its headers. */
export const hasBody = ({ headers }: FastifyRequest) =>
  headers['transfer-encoding'] !== undefined || Number(headers['content-length']) > 0

/** Ends the connection of a client that sends its body too slowly, with 408 unless the answer has begun. */
export function useBodyDeadlines(
  app: FastifyInstance,
  publicUrl: () => string,
  { whole, linger }: BodyTimes = defaultTimes,
): void {
  app.addHook('onRequest', (request, reply, done) => {
    done()
    const { raw } = request
    const { socket } = raw
    // An injected request has no connection.
    if (!hasBody(request) || !(socket instanceof Socket)) return
    const isStreamed = request.routeOptions.config.streamsBody === true
    const refuse = () => {
      if (!reply.raw.headersSent) {
        reply.raw.statusCode = 408 // for the log
        const text = isStreamed ? texts.uploadStalled(whole / 1000) : texts.bodyTooSlow(whole / 1000)
        socket.write(clientErrorAnswer('ERR_HTTP_REQUEST_TIMEOUT', request.id, publicUrl(), text))
      }
      socket.destroySoon()
    }
    const deadline = isStreamed ? undefined : setTimeout(refuse, whole)
    if (isStreamed) raw.setTimeout(whole, refuse)
    raw.on('end', () => {
      clearTimeout(deadline) // the handler may take longer
      if (isStreamed) socket.setTimeout(0)
    })
    raw.on('close', () => clearTimeout(deadline))
    reply.raw.on('finish', () => {
      clearTimeout(deadline)
      if (raw.complete) return
      const lingering = setTimeout(() => socket.destroy(), linger)
      raw.once('close', () => clearTimeout(lingering))
      raw.resume() // an unread body could not end, and the close of the connection would go unnoticed
    })
  })
}
