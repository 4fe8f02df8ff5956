import { createServer, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'

type Json = Record<string, unknown>

export interface FakeSignal {
  /** For `channels.signal.transport` of the kind `external-native`. */
  url: string
  /** What the account sent to people, in order. */
  sent: { text: string }[]
  /** Lets a person write to the account. */
  write(from: { number: string; name: string }, text: string): void
  close(): Promise<void>
}

/** A stand-in for the daemon of signal-cli: its check, its JSON-RPC and its event stream. */
export async function startFakeSignal(account: string): Promise<FakeSignal> {
  const sent: FakeSignal['sent'] = []
  const listeners = new Set<ServerResponse>()

  const server = createServer(async (request, response) => {
    const chunks: Buffer[] = []
    for await (const chunk of request) chunks.push(chunk as Buffer)
    const { pathname } = new URL(request.url ?? '/', 'http://signal.test')
    if (pathname === '/api/v1/events') {
      response.writeHead(200, { 'content-type': 'text/event-stream' }).flushHeaders()
      listeners.add(response)
      response.once('close', () => listeners.delete(response))
      return
    }
    if (pathname !== '/api/v1/rpc') {
      response.end()
      return
    }
    const { id, method, params } = JSON.parse(Buffer.concat(chunks).toString()) as Json & { params?: Json }
    if (method === 'send') sent.push({ text: String(params?.message) })
    const result = method === 'version' ? { version: '0.13.0' } : { timestamp: Date.now() }
    response.writeHead(200, { 'content-type': 'application/json' })
    response.end(JSON.stringify({ jsonrpc: '2.0', id, result }))
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))

  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    sent,
    write({ number, name }, text) {
      const timestamp = Date.now()
      const source = { source: number, sourceNumber: number, sourceName: name, sourceDevice: 1 }
      const envelope = { ...source, timestamp, dataMessage: { timestamp, message: text } }
      for (const listener of listeners) {
        listener.write(`event: receive\ndata: ${JSON.stringify({ envelope, account })}\n\n`)
      }
    },
    async close() {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}
