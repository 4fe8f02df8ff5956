import type { FastifyInstance } from 'fastify'
import { AppError } from './errors.ts'
import { texts } from './texts.ts'

/**
 * While the server closes it refuses new requests, and ends the connections of the others once they are answered: kept
 * alive, they would hold the close up.
 */
export function useClosing(app: FastifyInstance): void {
  let isClosing = false
  app.addHook('preClose', async () => {
    isClosing = true
  })
  app.addHook('onRequest', (request, reply, done) => {
    reply.raw.on('finish', () => {
      if (isClosing) request.raw.socket.destroySoon?.() // one that was injected has no real socket
    })
    done(isClosing ? new AppError('unavailable', texts.shuttingDown, { retryAfterSeconds: 1 }) : undefined)
  })
}
