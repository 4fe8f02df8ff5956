import { createServer, request as httpRequest } from 'node:http'
import { WebSocket, WebSocketServer } from 'ws'
import { answerMessages, listen } from './program.ts'

/**
 * The least that can stand an attack: it reads what it gets and answers, passes turns on to the hostile gateway and its
 * answers back, and holds WebSockets and waits open. What it costs, nothing could save.
 */
answerMessages(async ({ gatewayPort }: { gatewayPort: number | null }) => {
  const sockets = new WebSocketServer({ noServer: true })
  const server = createServer((request, reply) => {
    const url = request.url ?? ''
    reply.on('error', () => {})
    if (url.includes('wait=')) return
    if (gatewayPort !== null && url.endsWith('/sessions')) {
      const socket = new WebSocket(`ws://127.0.0.1:${gatewayPort}`)
      let frames = 0
      socket.on('error', () => {}).on('open', () => socket.send('{"id":"1","method":"connect"}'))
      socket.on('message', () => {
        frames += 1
        if (frames === 2) socket.send('{"id":"2","method":"x"}')
        if (frames === 50_000) socket.terminate()
      })
      socket.on('close', () => reply.writeHead(502).end())
      return
    }
    if (gatewayPort !== null && url.endsWith('/responses')) {
      const headers = { 'content-type': 'application/json' }
      const passed = httpRequest({ port: gatewayPort, path: '/v1/responses', method: 'POST', headers }, (answer) => {
        reply.writeHead(200)
        let bytes = 0
        answer.on('data', (chunk: Buffer) => {
          bytes += chunk.length
          if (bytes > 64 * 1024 * 1024) answer.destroy()
        })
        answer.on('error', () => {}).on('close', () => reply.end())
      })
      request.pipe(passed.on('error', () => reply.destroy()))
      reply.on('close', () => passed.destroy())
      return
    }
    request.resume().once('end', () => reply.writeHead(400).end('{}'))
  })
  server.on('upgrade', (request, socket, head) => sockets.handleUpgrade(request, socket, head, () => {}))
  return { port: await listen(server) }
})
