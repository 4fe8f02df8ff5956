import { createServer } from 'node:http'
import { Agent, request } from 'undici'
import { answerMessages, listen } from './program.ts'

/** The limit of the proxy: a server that sends each request on by undici and pipes the answer back. */
answerMessages(async ({ target }: { target: string }) => {
  const dispatcher = new Agent()
  const server = createServer(async (asked, reply) => {
    const answer = await request(target + asked.url, {
      method: 'POST',
      dispatcher,
      headers: { authorization: `${asked.headers.authorization}`, 'content-type': `${asked.headers['content-type']}` },
      body: asked,
    })
    reply.writeHead(answer.statusCode, {
      'content-type': `${answer.headers['content-type']}`,
      'content-length': `${answer.headers['content-length']}`,
    })
    answer.body.pipe(reply)
  })
  return { port: await listen(server) }
})
