import type { FastifyInstance } from 'fastify'

/**
 * While the server closes, it answers requests on open connections and ends each connection after its answer: a
 * kept-alive connection would delay the close. While it is about to close, each answer announces that, so that the
 * client's next request uses another connection, which may lead to another server.
 */
export function useClosing(app: FastifyInstance, isDraining: () => boolean): void {
  let isClosing = false
  app.addHook('preClose', async () => {
    isClosing = true
  })
  app.addHook('onRequest', (request, reply, done) => {
    if (isDraining()) reply.raw.shouldKeepAlive = false
    reply.raw.on('finish', () => {
      if (isClosing) request.raw.socket.destroySoon?.() // an injected request has no real socket
    })
    done()
  })
}
