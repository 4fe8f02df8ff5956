import type { FastifyInstance } from 'fastify'

/**
 * While the server closes, it still answers requests on open connections, and ends each connection after its answer: a
 * connection that is kept alive would delay the close.
 */
export function useClosing(app: FastifyInstance): void {
  let isClosing = false
  app.addHook('preClose', async () => {
    isClosing = true
  })
  app.addHook('onRequest', (request, reply, done) => {
    reply.raw.on('finish', () => {
      if (isClosing) request.raw.socket.destroySoon?.() // an injected request has no real socket
    })
    done()
  })
}
