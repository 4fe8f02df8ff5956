import fastify from 'fastify'
import pg from 'pg'
import { newId } from '#platform/ids.ts'
import { answerMessages, listen } from './program.ts'

export interface BareSetup {
  connection: pg.PoolConfig
  organizationIds: string[]
}

/** The limit of the API: Fastify and one statement a request on the same PostgreSQL, and nothing else. */
answerMessages(async ({ connection, organizationIds }: BareSetup) => {
  const pool = new pg.Pool({ ...connection, max: 10 })
  const app = fastify()
  let created = 0

  app.post<{ Body: { name: string } }>('/instances', async ({ body }, reply) => {
    created += 1
    const { rows } = await pool.query(
      `INSERT INTO instances (id, organization_id, name, model_provider, sandbox_driver, openclaw_version, sealed_token, desired_state)
       VALUES ($1, $2, $3, 'anthropic', 'local', 'v1', 'token', 'running')
       RETURNING id, organization_id, name, desired_state, created_at, updated_at`,
      [newId(), organizationIds[created % organizationIds.length], body.name],
    )
    return reply.code(201).send(rows[0])
  })

  app.get<{ Params: { id: string } }>('/instances/:id/status', async ({ params }) => {
    const { rows } = await pool.query(
      'SELECT id, desired_state, ready_at, step, endpoint FROM instances WHERE id = $1',
      [params.id],
    )
    return rows[0]
  })

  await app.ready()
  return { port: await listen(app.server) }
})
