import { createServer } from 'node:http'
import { answerMessages, listen } from './program.ts'

const text = 'The quick brown fox jumps over the lazy dog. '.repeat(6)
const response = JSON.stringify({
  id: 'resp_stub',
  object: 'response',
  created_at: 0,
  status: 'completed',
  model: 'openclaw',
  output: [
    {
      type: 'message',
      id: 'msg_stub',
      role: 'assistant',
      status: 'completed',
      content: [{ type: 'output_text', text, annotations: [] }],
    },
  ],
  usage: { input_tokens: 12, output_tokens: 60, total_tokens: 72 },
})

/** A gateway that answers every turn at once with the same words. */
answerMessages(async () => {
  const server = createServer((request, reply) => {
    const body = request.url === '/v1/responses' ? response : '{"ok":true,"status":"live"}'
    request.resume().once('end', () => {
      reply.writeHead(200, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) }).end(body)
    })
  })
  return { port: await listen(server) }
})
