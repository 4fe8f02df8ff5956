import { createServer } from 'node:http'
import { type AddressInfo, Socket } from 'node:net'
import { afterAll, describe, expect, test, vi } from 'vitest'
import { FakeDriver } from '../support/fake-driver.ts'
import { listenLocally } from '../support/local-server.ts'
import { openTestChowder } from '../support/test-chowder.ts'

/** Stands for a service of the operator's network: no request may reach it. */
let trapRequests = 0
const trap = createServer((_request, response) => {
  trapRequests += 1
  response.end('{}')
}).on('upgrade', (_request, socket) => {
  trapRequests += 1
  socket.destroy()
})
/** A gateway, a model provider and a registry that send whoever asks to another address. */
let location = ''
let redirected = 0
const redirecting = createServer((request, response) => {
  request.resume()
  redirected += 1
  response.writeHead(307, { location, refresh: `0; url=${location}`, 'alt-svc': 'h2=":1"' }).end()
}).on('upgrade', (_request, socket) =>
  socket.on('error', () => {}).end(`HTTP/1.1 302 Found\r\nlocation: ${location}\r\n\r\n`),
)

const opened: string[] = []
let closing: (() => Promise<unknown>)[]

/** Where a socket is to connect to, as Node is told: all clients open their connections by this one function. */
function watchConnections() {
  const connect = Socket.prototype.connect
  return vi.spyOn(Socket.prototype, 'connect').mockImplementation(function (this: Socket, ...args: unknown[]) {
    const [first, second] = args.flat() as [unknown, unknown]
    const {
      path,
      host = 'localhost',
      port = first,
    } = (typeof first === 'object' ? first : {}) as Record<string, unknown>
    const target = typeof first === 'string' ? first : (path ?? `${typeof second === 'string' ? second : host}:${port}`)
    opened.push(String(target))
    return (connect as (...args: unknown[]) => Socket).apply(this, args)
  } as never)
}

const [inner, outer] = [await listenLocally(trap), await listenLocally(redirecting)]
const port = (trap.address() as AddressInfo).port
const gateway = { kind: 'tcp', host: '127.0.0.1', port: (redirecting.address() as AddressInfo).port } as const
const chowder = await openTestChowder({
  sandboxes: new FakeDriver(() => gateway),
  providerUrl: outer.url,
  clawhubUrl: outer.url,
})
closing = [() => chowder.close(), inner.close, outer.close]
const { key } = await chowder.signUp()
const id = await chowder.createReady(key, gateway)
opened.length = 0
const watched = watchConnections()
await chowder.database.pool.query('SELECT pg_sleep(0)')
const { connection } = chowder.database
const database = connection.connectionString ? new URL(connection.connectionString) : null
const host = database?.hostname ?? connection.host ?? 'localhost'
const databasePort = database?.port || (connection.port ?? 5432)
const allowed = new Set([
  `127.0.0.1:${gateway.port}`,
  `localhost:${gateway.port}`,
  `${host}:${databasePort}`,
  `${host}/.s.PGSQL.${databasePort}`,
])
afterAll(async () => {
  watched.mockRestore()
  for (const close of closing) await close()
})

/** Addresses that only the operator's network has, in the spellings that parsers of URLs know. */
const hosts = [
  '127.0.0.1',
  'localhost',
  'localhost.',
  '127.1',
  '2130706433',
  '0x7f.1',
  '0177.0.0.1',
  '0.0.0.0',
  '[::1]',
  '[::]',
  '[::ffff:127.0.0.1]',
  '[::ffff:7f00:1]',
  '[64:ff9b::7f00:1]',
  '169.254.169.254',
  '[::ffff:a9fe:a9fe]',
  '[fe80::1]',
  '[fd00:ec2::254]',
  '10.0.0.1',
  'metadata.google.internal',
  'host.docker.internal',
  '127.0.0.1.nip.io',
  '１２７.０.０.１',
]

type Call = [method: 'GET' | 'POST' | 'PATCH', path: string, body?: unknown]
const message = (part: object) => ({ model: 'openclaw', input: [{ role: 'user', content: [part] }] })

/** Fields of a customer in which an address may be, or may be taken for one. */
const callsWith = (url: string): Call[] => [
  ['POST', '/responses', message({ type: 'input_image', image_url: url })],
  ['POST', '/responses', message({ type: 'input_file', file_url: url })],
  ['POST', '/responses', { model: 'openclaw', input: url, instructions: url }],
  [
    'POST',
    '/chat/completions',
    { model: 'openclaw', messages: [{ role: 'user', content: [{ type: 'image_url', image_url: { url } }] }] },
  ],
  ['POST', `/session/${encodeURIComponent(url)}/responses`, { model: 'openclaw', input: 'x' }],
  ['PATCH', '', { name: url.slice(0, 100), external_id: url.slice(0, 100), metadata: { webhook: url } }],
  ['POST', '/skills/install', { slug: url }],
  ['POST', '/skills/install', { slug: '@x/y', version: url }],
  ['GET', `/skills/search?q=${encodeURIComponent(url)}`],
  ['GET', '/sessions'],
  ['GET', '/channels/telegram/status'],
  ['GET', `/files/content?path=${encodeURIComponent(url)}`],
]

/** The same in the configuration of an agent, whose changes wait for its gateway. */
const changesWith = (url: string): Call[] => [
  ['POST', '/channels/matrix/connect', { config: { homeserver: url, user_id: '@b:x', access_token: 'x' } }],
  ['POST', '/channels/mattermost/connect', { config: { base_url: url, bot_token: 'x' } }],
  ['POST', '/channels/googlechat/connect', { config: { audience_type: 'app-url', audience: url } }],
  ['PATCH', '', { openclaw_config: { models: { providers: { anthropic: { baseUrl: url } } } } }],
  ['PATCH', '', { openclaw_config: { proxy: { url }, browser: { cdpUrl: url }, hooks: { token: url } } }],
]

describe('A5: no address of a customer, and no redirect, makes Chowder itself connect anywhere', () => {
  const send = ([method, path, body]: Call, headers = {}) =>
    chowder.call(method, `/v1/instances/${id}${path}`, { key, headers, ...(body !== undefined && { body }) })
  const unexpected = () => opened.filter((target) => !allowed.has(target))

  test.each(hosts)('%s', async (host) => {
    const url = `http://${host}:${port}/latest/meta-data`
    location = encodeURI(url)
    opened.length = 0
    trapRequests = 0
    redirected = 0
    const inHeader = encodeURIComponent(host)
    const headers = {
      'x-forwarded-host': `${inHeader}:${port}`,
      'x-forwarded-for': inHeader,
      referer: encodeURI(url),
      forwarded: `host=${inHeader}`,
    }
    const keys = { model_api_keys: { anthropic: 'x', openai: 'x', gemini: 'x' } }
    const tested = chowder.call('POST', '/v1/organization/model_api_keys/test', { key, headers, body: keys })
    await Promise.all([tested, ...callsWith(url).map((call) => send(call, headers))])
    expect(unexpected()).toEqual([])
    expect(redirected).toBeGreaterThan(5)
    expect(trapRequests).toBe(0)
  })

  test('in the configuration of an agent', { timeout: 300_000, tags: ['long'] }, async () => {
    opened.length = 0
    trapRequests = 0
    for (const call of changesWith(`http://127.0.0.1:${port}/`)) await send(call)
    expect(unexpected()).toEqual([])
    expect(trapRequests).toBe(0)
  })
})
