import { Socket } from 'node:net'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { clientErrorAnswer } from './http-errors.ts'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** The route takes a body of any length piece by piece: it has a deadline for each piece, not for the whole. */
    streamsBody?: boolean
  }
}

/** In ms. */
export interface BodyTimes {
  /** For the whole of an ordinary body. */
  whole: number
  /** For the next bytes of one that is streamed. */
  idle: number
  /** For a sender to stop who has his answer already: cut off at once, he might not get to read it. */
  linger: number
}

const usual: BodyTimes = { whole: 60_000, idle: 60_000, linger: 10_000 }

const hasBody = ({ headers }: FastifyRequest) =>
  headers['transfer-encoding'] !== undefined || Number(headers['content-length']) > 0

/** Ends the connection of a sender who is too slow, with 408 if nothing was answered yet. */
export function useBodyDeadlines(app: FastifyInstance, times: BodyTimes = usual): void {
  app.addHook('onRequest', (request, reply, done) => {
    done()
    const { raw } = request
    const { socket } = raw
    // One that was injected comes over no connection.
    if (!hasBody(request) || !(socket instanceof Socket)) return
    const cut = () => {
      if (!reply.raw.headersSent) {
        reply.raw.statusCode = 408 // for the log
        socket.write(clientErrorAnswer('ERR_HTTP_REQUEST_TIMEOUT', request.id))
      }
      socket.destroySoon()
    }
    const isStreamed = request.routeOptions.config.streamsBody === true
    let deadline = isStreamed ? undefined : setTimeout(cut, times.whole)
    if (isStreamed) raw.setTimeout(times.idle, cut)
    raw.on('end', () => {
      clearTimeout(deadline)
      if (isStreamed) raw.setTimeout(0) // what is done with it now may take longer
    })
    reply.raw.on('finish', () => {
      clearTimeout(deadline)
      if (raw.complete) return
      deadline = setTimeout(() => socket.destroy(), times.linger)
      raw.resume() // else he could neither finish nor be seen to leave
    })
    raw.on('close', () => clearTimeout(deadline))
  })
}
