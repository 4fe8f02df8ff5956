import { createServer, type ServerResponse } from 'node:http'
import { WebSocketServer } from 'ws'
import { answerMessages, listen } from './program.ts'

const mebibyte = 1024 * 1024
/** As large as an answer may be. */
const items = Buffer.from(`{"output":[${'{},'.repeat((8 * mebibyte - 1024) / 3)}{}],"status":"completed"}`)
const event = 'data: {"type":"x"}\n\n'
const pieceBytes = 64 * 1024
const events = Buffer.from(event.repeat(pieceBytes / event.length))
const frame = '{"type":"event","event":"x","payload":{}}'
const framesAtOnce = 1000
const textDelta =
  'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","item_id":"m","output_index":0,"content_index":0,"delta":"x"}\n\n'

const output = Buffer.from(textDelta.repeat(pieceBytes / textDelta.length))

/** Writes as fast as it is read. */
function flood(reply: ServerResponse, piece: Buffer): void {
  const write = () => {
    while (!reply.destroyed && reply.write(piece));
  }
  reply.on('drain', write)
  write()
}

/** What a session's turn gets, by the end of its key. */
const answers: Record<string, (reply: ServerResponse) => void> = {
  items: (reply) => reply.writeHead(200, { 'content-type': 'application/json' }).end(items),
  events: (reply) => flood(reply.writeHead(200, { 'content-type': 'text/event-stream' }), events),
  output: (reply) => flood(reply.writeHead(200, { 'content-type': 'text/event-stream' }), output),
  open: (reply) => void reply.writeHead(200, { 'content-type': 'text/event-stream' }).write(textDelta),
}

/**
 * A gateway in whose place an agent answers: it floods its turns, each as its session is named, and every call of its
 * WebSocket with events.
 */
answerMessages(async ({ answer }: { answer: string }) => {
  const server = createServer((request, reply) => {
    request.resume().once('end', () => answers[answer]?.(reply))
  })
  new WebSocketServer({ server }).on('connection', (socket) => {
    socket.on('error', () => {})
    socket.send(JSON.stringify({ type: 'event', event: 'connect.challenge', payload: {} }))
    socket.on('message', (data) => {
      const { id, method } = JSON.parse(String(data))
      if (method === 'connect') return socket.send(JSON.stringify({ type: 'res', id, ok: true, payload: {} }))
      const send = () => {
        if (socket.readyState !== socket.OPEN) return
        for (let count = 1; count < framesAtOnce; count += 1) socket.send(frame)
        socket.send(frame, () => setImmediate(send))
      }
      send()
    })
  })
  return { port: await listen(server) }
})
