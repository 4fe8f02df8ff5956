import fastify from 'fastify'
import { Agent, request } from 'undici'
import { answerMessages, listen } from './program.ts'

/** The limit of the proxy: bare Fastify, as in the other limits, that sends each body on by undici and pipes the answer. */
answerMessages(async ({ target }: { target: string }) => {
  const dispatcher = new Agent()
  const app = fastify()
  app.post('/v1/responses', async (asked, reply) => {
    const answer = await request(`${target}/v1/responses`, {
      method: 'POST',
      dispatcher,
      headers: { authorization: String(asked.headers.authorization), 'content-type': 'application/json' },
      body: JSON.stringify(asked.body),
    })
    return reply
      .code(answer.statusCode)
      .header('content-type', answer.headers['content-type'])
      .header('content-length', answer.headers['content-length'])
      .send(answer.body)
  })
  await app.ready()
  return { port: await listen(app.server) }
})
