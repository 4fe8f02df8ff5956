import pg from 'pg'
import { pino } from 'pino'
import { Agent, request } from 'undici'
import { createCallers } from '#api/keys/callers.ts'
import { buildApp } from '#app.ts'
import { nothingBehind } from '#commands/openapi.ts'
import { createDb } from '#database/client.ts'
import { useApiKeys } from '#http/auth.ts'
import { createFindGateway, createFindSummary } from '#instances/find.ts'
import { createVault } from '#platform/secrets.ts'
import { answerMessages, listen } from './program.ts'

export interface WithoutAdapter {
  connection: pg.PoolConfig
  secretKey: string
}

/**
 * What the adapter is measured beside: Chowder's own API with one more route, which checks the key, finds the gateway and
 * passes bytes both ways as they come.
 */
answerMessages(async ({ connection, secretKey }: WithoutAdapter) => {
  const db = createDb(new pg.Pool({ ...connection, max: 10 }))
  const log = pino({ level: 'silent' })
  const findSummary = createFindSummary(db)
  const gatewayOf = createFindGateway(db, createVault(Buffer.from(secretKey, 'base64')), findSummary)
  const { find: findCaller } = createCallers(db, log)
  const limits = { ...nothingBehind.limits, requestsPerMinute: 0, failedAuthPerMinute: 0 }
  const app = await buildApp({ ...nothingBehind, log, limits, findCaller, findSummary, gatewayOf })
  const dispatcher = new Agent()
  app.register(async (v1) => {
    useApiKeys(v1, findCaller, findSummary, { countFailure: async () => {}, countRequest: async () => {} })
    v1.post<{ Params: { instance_id: string } }>(
      '/passed/:instance_id',
      { config: { access: 'interact', event: null }, schema: { hide: true } },
      async ({ caller, params, body }, reply) => {
        const { endpoint, token } = await gatewayOf(caller.organizationId, params.instance_id)
        if (endpoint.kind !== 'tcp') throw new Error('the stub gateway has a port')
        const answer = await request(`http://${endpoint.host}:${endpoint.port}/v1/responses`, {
          method: 'POST',
          dispatcher,
          headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
          body: JSON.stringify(body),
        })
        reply.code(answer.statusCode).header('content-type', answer.headers['content-type'])
        const length = answer.headers['content-length']
        if (length !== undefined) reply.header('content-length', length)
        return reply.send(answer.body)
      },
    )
  })
  await app.ready()
  return { port: await listen(app.server) }
})
