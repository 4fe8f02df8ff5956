import type { FastifyInstance } from 'fastify'

/**
 * While the server closes, who is connected already is still answered, and each connection ends with its answer: kept alive, it
 * would hold the close up.
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
    done()
  })
}
