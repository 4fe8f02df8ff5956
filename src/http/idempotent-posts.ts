import type { FastifyInstance, onSendAsyncHookHandler, preHandlerAsyncHookHandler } from 'fastify'
import type { Db } from '#database/client.ts'
import type { Vault } from '#platform/secrets.ts'
import { type Claim, claimKey, IdempotencyHeaders } from './idempotency.ts'

declare module 'fastify' {
  interface FastifyContextConfig {
    /**
     * The treatment of an `Idempotency-Key` by a POST. `transaction`: it answers through `idempotent`. `none`: it
     * accepts no key. By default its answer is stored after its work.
     */
    idempotency?: 'transaction' | 'none'
  }
  interface FastifyRequest {
    /** The claim of a request for its key. */
    idempotencyClaim: Claim | null
  }
}

/**
 * Makes every POST with a caller accept an `Idempotency-Key`, unless its route opts out. The key is claimed before the
 * handler runs, and the answer is stored before it is sent; a failure frees the key. If the process dies between the
 * work and the answer, its claim ends with it, and a repetition does the work again.
 */
export function useIdempotency(app: FastifyInstance, deps: { db: Db; vault: Vault; processId: string }): void {
  app.decorateRequest('idempotencyClaim', null)
  const claim: preHandlerAsyncHookHandler = async (request, reply) => {
    const claimed = await claimKey(deps, request)
    if (claimed === null) return
    if ('store' in claimed) request.idempotencyClaim = claimed
    else return reply.code(claimed.status).header('idempotent-replayed', 'true').send(claimed.body)
  }
  const settle: onSendAsyncHookHandler = async (request, reply, payload) => {
    const { idempotencyClaim, log } = request
    if (!idempotencyClaim) return
    request.idempotencyClaim = null
    const answer = typeof payload === 'string' && payload !== '' ? payload : 'null'
    const settled =
      reply.statusCode < 300 ? idempotencyClaim.store(reply.statusCode, answer) : idempotencyClaim.release()
    // The work is done: the caller gets the answer. A repetition of the request gets a 409 while this process lives.
    await settled.catch((err: unknown) => log.error({ err }, 'failed to store an answer for its Idempotency-Key'))
  }
  app.addHook('onRoute', (route) => {
    const { access, idempotency } = route.config ?? {}
    if (![route.method].flat().includes('POST') || access === 'public' || idempotency === 'none') return
    route.schema = { ...route.schema, headers: IdempotencyHeaders }
    if (idempotency === 'transaction') return
    route.preHandler = [...[route.preHandler ?? []].flat(), claim]
    route.onSend = [...[route.onSend ?? []].flat(), settle]
  })
}
