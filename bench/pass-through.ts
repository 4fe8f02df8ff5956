import fastify from 'fastify'
import pg from 'pg'
import { Agent, request } from 'undici'
import { newId } from '#platform/ids.ts'
import { answerMessages, listen } from './program.ts'

export interface PassThrough {
  target: string
  connection: pg.PoolConfig
  instanceIds: string[]
}

/**
 * The limit of the proxy: bare Fastify, as in the other limits, that sends each body on by undici, keeps the answer in
 * a row of its own, and sends it back.
 */
answerMessages(async ({ target, connection, instanceIds }: PassThrough) => {
  const pool = new pg.Pool({ ...connection, max: 10 })
  const dispatcher = new Agent()
  const app = fastify()
  let turns = 0
  app.post('/v1/responses', async (asked, reply) => {
    const answer = await request(`${target}/v1/responses`, {
      method: 'POST',
      dispatcher,
      headers: { authorization: String(asked.headers.authorization), 'content-type': 'application/json' },
      body: JSON.stringify(asked.body),
    })
    const text = await answer.body.text()
    turns += 1
    await pool.query(
      `INSERT INTO responses (id, organization_id, instance_id, session_key, status, sealed_object, sealed_input)
       SELECT $1, organization_id, id, 'main', 'completed', $3, $4 FROM instances WHERE id = $2`,
      [newId(), instanceIds[turns % instanceIds.length], text, JSON.stringify(asked.body)],
    )
    return reply.code(answer.statusCode).header('content-type', answer.headers['content-type']).send(text)
  })
  await app.ready()
  return { port: await listen(app.server) }
})
