import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { WebSocket, WebSocketServer } from 'ws'
import type { Endpoint } from '#sandbox/driver.ts'

/** A frame of a gateway's WebSocket. Ids of calls are unique within its connection. */
export interface RecordedFrame {
  connection: number
  frame: Record<string, unknown>
}

export interface FrameRecorder {
  /** Connect here to be recorded. */
  endpoint: Endpoint & { kind: 'tcp' }
  /** All frames so far, in the order in which they passed. */
  frames: RecordedFrame[]
  close(): Promise<void>
}

/** A WebSocket proxy in front of a gateway, which keeps every frame that passes. */
export async function recordFrames(target: Endpoint & { kind: 'tcp' }): Promise<FrameRecorder> {
  const frames: RecordedFrame[] = []
  let connections = 0
  const server = new WebSocketServer({ port: 0, host: '127.0.0.1' })
  server.on('connection', (client, { headers: { authorization = '' } }) => {
    const gateway = new WebSocket(`ws://${target.host}:${target.port}/`, { headers: { authorization } })
    const connection = connections++
    const pass = (to: WebSocket) => (data: Buffer) => {
      frames.push({ connection, frame: JSON.parse(data.toString()) })
      to.send(data, { binary: false })
    }
    // A client waits for the challenge of its gateway before it sends anything, so the gateway is open by then.
    client.on('message', pass(gateway))
    gateway.on('message', pass(client))
    client.on('close', () => gateway.terminate())
    gateway.on('close', () => client.terminate())
    gateway.on('error', () => client.terminate())
  })
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  return {
    endpoint: { kind: 'tcp', host: '127.0.0.1', port },
    frames,
    async close() {
      for (const client of server.clients) client.terminate()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}
