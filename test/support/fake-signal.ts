import { createServer, type ServerResponse } from 'node:http'
import { json } from 'node:stream/consumers'
import { listenLocally } from './local-server.ts'

type Json = Record<string, unknown>

export interface FakeSignal {
  /** For `channels.signal.transport` of the kind `external-native`. */
  url: string
  /** The messages that the account sent, in order. */
  sent: { text: string }[]
  /** Sends a message to the account as a person. */
  write(from: { number: string; name: string }, text: string): void
  close(): Promise<void>
}

/** A stand-in for the daemon of signal-cli: its check, its JSON-RPC calls and its event stream. */
export async function startFakeSignal(account: string): Promise<FakeSignal> {
  const sent: FakeSignal['sent'] = []
  const listeners = new Set<ServerResponse>()

  const server = createServer(async (request, response) => {
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
    const { id, method, params } = (await json(request)) as Json & { params?: Json }
    if (method === 'send') sent.push({ text: String(params?.message) })
    const result = method === 'version' ? { version: '0.13.0' } : { timestamp: Date.now() }
    response.writeHead(200, { 'content-type': 'application/json' })
    response.end(JSON.stringify({ jsonrpc: '2.0', id, result }))
  })
  const { url, close } = await listenLocally(server)

  return {
    url,
    sent,
    write({ number, name }, text) {
      const timestamp = Date.now()
      const source = { source: number, sourceNumber: number, sourceName: name, sourceDevice: 1 }
      const envelope = { ...source, timestamp, dataMessage: { timestamp, message: text } }
      for (const listener of listeners) {
        listener.write(`event: receive\ndata: ${JSON.stringify({ envelope, account })}\n\n`)
      }
    },
    close,
  }
}
