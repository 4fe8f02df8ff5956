import { createServer } from 'node:http'
import { Pool } from 'undici'
import { answerMessages, listen } from './program.ts'

/** The limit of the relay: a server that sends each call on by undici, and its answer back, as the bytes come. */
answerMessages(async ({ vendorPort }: { vendorPort: number }) => {
  const pool = new Pool(`http://127.0.0.1:${vendorPort}`, { connections: null })
  const server = createServer((asked, reply) => {
    const { authorization = '', 'content-length': length = '0' } = asked.headers
    const headers = { authorization, 'content-type': 'application/json', 'content-length': length }
    pool
      .stream({ path: asked.url ?? '', method: 'POST', headers, body: asked }, ({ statusCode, headers: answered }) =>
        reply.writeHead(statusCode, answered),
      )
      .catch(() => reply.destroy())
  })
  return { port: await listen(server) }
})
