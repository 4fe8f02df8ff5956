import { Socket } from 'node:net'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { clientErrorAnswer } from './errors.ts'

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

/** How often in the time for a whole body it is looked whether that is over. */
const looksInTime = 20

const usual: BodyTimes = { whole: 60_000, idle: 60_000, linger: 10_000 }

const hasBody = ({ headers }: FastifyRequest) =>
  headers['transfer-encoding'] !== undefined || Number(headers['content-length']) > 0

/** Ends the connection of a sender who is too slow, with 408 if nothing was answered yet. */
export function useBodyDeadlines(app: FastifyInstance, publicUrl: () => string, times: BodyTimes = usual): void {
  /** What ends the senders of bodies that are not whole yet, with the time when it does. One timer for all. */
  const deadlines = new Map<() => void, number>()
  const look = () => {
    const now = performance.now()
    for (const [cut, at] of deadlines) {
      if (at > now) return // the others began later
      deadlines.delete(cut)
      cut()
    }
  }
  const looking = setInterval(look, times.whole / looksInTime).unref()
  app.addHook('onClose', async () => clearInterval(looking))

  app.addHook('onRequest', (request, reply, done) => {
    done()
    const { raw } = request
    const { socket } = raw
    // One that was injected comes over no connection.
    if (!hasBody(request) || !(socket instanceof Socket)) return
    const cut = () => {
      if (!reply.raw.headersSent) {
        reply.raw.statusCode = 408 // for the log
        socket.write(clientErrorAnswer('ERR_HTTP_REQUEST_TIMEOUT', request.id, publicUrl()))
      }
      socket.destroySoon()
    }
    const isStreamed = request.routeOptions.config.streamsBody === true
    if (isStreamed) raw.setTimeout(times.idle, cut)
    else deadlines.set(cut, performance.now() + times.whole)
    raw.on('end', () => {
      deadlines.delete(cut)
      if (isStreamed) raw.setTimeout(0) // what is done with it now may take longer
    })
    reply.raw.on('finish', () => {
      deadlines.delete(cut)
      if (raw.complete) return
      const lingering = setTimeout(() => socket.destroy(), times.linger)
      raw.once('close', () => clearTimeout(lingering))
      raw.resume() // else he could neither finish nor be seen to leave
    })
    raw.on('close', () => deadlines.delete(cut))
  })
}
