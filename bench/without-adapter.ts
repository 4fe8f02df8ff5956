import pg from 'pg'
import { pino } from 'pino'
import { Agent, request } from 'undici'
import { apiSettings, createApi } from '#composition/api.ts'
import { sharedSettings } from '#composition/settings.ts'
import { createDb } from '#database/client.ts'
import { useApiKeys } from '#http/auth.ts'
import { onlyRegion } from '#instances/regions.ts'
import { createQueue } from '#lifecycle/queue/queue.ts'
import { createHostDisk } from '#platform/host-disk.ts'
import { newId } from '#platform/ids.ts'
import { createVault } from '#platform/secrets.ts'
import { loadConfig } from '#settings/config.ts'
import { FakeDriver } from '../test/support/fake-driver.ts'
import { answerMessages, listen } from './program.ts'

export interface WithoutAdapter {
  connection: pg.PoolConfig
  secretKey: string
}

const noLimits = {
  RATE_LIMIT_PER_MINUTE: '0',
}

/**
 * The measure for the adapter: Chowder's own API with one more route, which checks the key, finds the gateway and
 * passes bytes both ways as they come.
 */
answerMessages(async ({ connection, secretKey }: WithoutAdapter) => {
  const log = pino({ level: 'silent' })
  const config = loadConfig(noLimits)
  const { app, deps } = await createApi(
    {
      db: createDb(new pg.Pool({ ...connection, max: 10 })),
      processId: newId(),
      vault: createVault(Buffer.from(secretKey, 'base64')),
      queue: createQueue({ kind: 'postgres', connection }, log),
      regions: onlyRegion({ ...sharedSettings(config), sandboxes: new FakeDriver() }),
      billing: null,
      hostDisk: createHostDisk('/', 0),
      log,
      publicUrl: () => '',
      areWorkersMissing: () => false,
      isDraining: () => false,
    },
    apiSettings(config),
  )
  const dispatcher = new Agent()
  app.register(async (v1) => {
    useApiKeys(
      v1,
      { ...deps, requireInstance: deps.findSummary },
      {
        countFailure: async () => {},
        countRequest: async () => {},
      },
    )
    v1.post<{ Params: { instance_id: string } }>(
      '/passed/:instance_id',
      { config: { access: 'interact', session: 'main', event: null }, schema: { hide: true } },
      async ({ caller, params, body }, reply) => {
        const { endpoint, token } = await deps.findGateway(caller.organizationId, params.instance_id)
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
