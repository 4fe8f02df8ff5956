import { createServer, type ServerResponse } from 'node:http'
import { answerMessages, listen } from './program.ts'
import { streamedPieces } from './streamed.ts'

const text = 'The quick brown fox jumps over the lazy dog. '.repeat(6)
const common = { id: 'resp_stub', object: 'response', created_at: 0, model: 'openclaw' }
const message = {
  type: 'message',
  id: 'msg_stub',
  role: 'assistant',
  status: 'completed',
  content: [{ type: 'output_text', text, annotations: [] }],
}
const usage = { input_tokens: 12, output_tokens: 60, total_tokens: 72 }
const response = JSON.stringify({ ...common, status: 'completed', output: [message], usage })

const sse = (event: { type: string; [field: string]: unknown }) =>
  `event: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`
const place = { item_id: 'msg_stub', output_index: 0, content_index: 0 }
const begun = { ...common, status: 'in_progress', output: [] }
const head = [
  sse({ type: 'response.created', response: begun }),
  sse({ type: 'response.in_progress', response: begun }),
  sse({ type: 'response.output_item.added', output_index: 0, item: { ...message, content: [] } }),
  sse({ type: 'response.content_part.added', ...place, part: { type: 'output_text', text: '' } }),
].join('')
const delta = sse({ type: 'response.output_text.delta', ...place, delta: text.slice(0, 24) })
const said = text.slice(0, 24).repeat(streamedPieces)
const tail = [
  sse({ type: 'response.output_text.done', ...place, text: said }),
  sse({ type: 'response.content_part.done', ...place, part: { type: 'output_text', text: said } }),
  sse({ type: 'response.output_item.done', output_index: 0, item: message }),
  sse({ type: 'response.completed', response: { ...common, status: 'completed', output: [message], usage } }),
  'data: [DONE]\n\n',
].join('')

/** A stream at full speed, an event a write; one that is to stay open says one piece and no more. */
function stream(reply: ServerResponse, staysOpen: boolean): void {
  reply.writeHead(200, { 'content-type': 'text/event-stream; charset=utf-8' })
  reply.write(head)
  if (staysOpen) return void reply.write(delta)
  for (let count = 0; count < streamedPieces; count++) reply.write(delta)
  reply.end(tail)
}

/** A gateway that answers every turn at once with the same words. */
answerMessages(async () => {
  const server = createServer((request, reply) => {
    const isTurn = request.url === '/v1/responses'
    const chunks: Buffer[] = []
    request.on('data', (chunk) => chunks.push(chunk))
    request.once('end', () => {
      const body = isTurn ? response : '{"ok":true,"status":"live"}'
      const asked = Buffer.concat(chunks).toString()
      if (isTurn && asked.includes('"stream":true')) return stream(reply, asked.includes('stay open'))
      reply.writeHead(200, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) }).end(body)
    })
  })
  return { port: await listen(server) }
})
