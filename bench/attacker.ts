import { connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { Agent, request } from 'undici'
import { WebSocket } from 'ws'
import { newRelayToken } from '#instances/gateway/tokens.ts'
import { answerMessages } from './program.ts'

/** An attack on what listens on a port, by a customer with a valid key. */
export interface Attack {
  kind: keyof typeof attacks
  port: number
  auth: Record<string, string>
  instanceId: string
}

/** What came of an attack so far: how many answers had each status; `none` is no answer. */
export type Answers = Record<string, number>

interface Means extends Attack {
  signal: AbortSignal
  answers: Answers
  /** Sends a request, reads its answer, and resolves when that has ended. */
  send(method: 'GET' | 'POST' | 'PATCH', path: string, body?: Buffer | string, auth?: Attack['auth']): Promise<void>
}

const bodyBytes = 20 * 1024 * 1024 - 1024
const slowPieceEveryMs = 500
/** As the answer asks. */
const afterRefusalMs = 1000
/** Between the requests of ten clients that send as many as the limit of a key allows by default: 100 a second. */
const paceMs = 100

const json = { 'content-type': 'application/json' }
const turnOf = (text: string, stream = false) => JSON.stringify({ model: 'openclaw', input: text, stream })
const count = (answers: Answers, status: number | string) => {
  answers[status] = (answers[status] ?? 0) + 1
}

/** Each of so many clients acts again as soon as it is done. */
const clients = (number: number, { signal }: Means, act: (client: number) => Promise<void>) =>
  Promise.all(
    Array.from({ length: number }, async (_, client) => {
      while (!signal.aborted) await act(client)
    }),
  )

const sessionPath = (id: string, client: number | string) => `/v1/instances/${id}/session/s${client}/responses`

let ones: Buffer | undefined

/** Opens a WebSocket, and resolves when it has closed. */
function holdSocket({ port, auth, instanceId, signal, answers }: Means, client: number): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  const url = `ws://127.0.0.1:${port}${sessionPath(instanceId, client)}`
  const socket = new WebSocket(url, { headers: auth })
  const end = () => socket.terminate()
  signal.addEventListener('abort', end)
  socket.on('open', () => count(answers, 101))
  socket.on('unexpected-response', (_request, response) => {
    count(answers, response.statusCode ?? 0)
    response.destroy()
    setTimeout(resolve, afterRefusalMs)
  })
  socket.on('error', () => {})
  socket.on('close', () => {
    signal.removeEventListener('abort', end)
    resolve()
  })
  return promise
}

/** Sends the head of a request, and then its body so slowly that it never ends. */
function trickle({ port, auth, instanceId, signal, answers }: Means): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  const socket = connect(port, '127.0.0.1')
  const headers = Object.entries({ host: 'localhost', ...auth, ...json, 'content-length': 100_000 })
  const head = headers.map(([name, value]) => `${name}: ${value}\r\n`).join('')
  socket.write(`PATCH /v1/instances/${instanceId} HTTP/1.1\r\n${head}\r\n{"name":"`)
  const timer = setInterval(() => socket.write('x'), slowPieceEveryMs)
  const end = () => socket.destroy()
  signal.addEventListener('abort', end)
  socket.on('data', (data) => count(answers, data.toString('latin1', 9, 12)))
  socket.on('error', () => {})
  socket.on('close', () => {
    clearInterval(timer)
    signal.removeEventListener('abort', end)
    resolve()
  })
  return promise
}

/** Empty frames, whose mask is zero. */
const emptyFrames = Buffer.alloc(6 * 10_000, Buffer.from([0x81, 0x80, 0, 0, 0, 0]))

/** Opens a WebSocket, sends short frames as fast as they are read, and reads the errors that they get. */
function floodSocket({ port, auth, instanceId, signal, answers }: Means, client: number): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  const socket = connect(port, '127.0.0.1')
  const handshake = {
    upgrade: 'websocket',
    'sec-websocket-version': 13,
    'sec-websocket-key': 'MDEyMzQ1Njc4OWFiY2RlZg==',
  }
  const headers = Object.entries({ host: 'localhost', connection: 'Upgrade', ...handshake, ...auth })
  const head = headers.map(([name, value]) => `${name}: ${value}\r\n`).join('')
  socket.write(`GET ${sessionPath(instanceId, client)} HTTP/1.1\r\n${head}\r\n`)
  const write = () => {
    while (!socket.destroyed && socket.write(emptyFrames));
  }
  const end = () => socket.destroy()
  signal.addEventListener('abort', end)
  socket.once('data', (data) => {
    count(answers, data.toString('latin1', 9, 12))
    socket.on('drain', write).resume()
    write()
  })
  socket.on('error', () => {})
  socket.on('close', () => {
    signal.removeEventListener('abort', end)
    setTimeout(resolve, signal.aborted ? 0 : afterRefusalMs)
  })
  return promise
}

/** Texts that a backtracking pattern would read again and again. */
const hostileTexts = ['a', '-', '.', 'a-', 'a.', 'a/', '@a', ' ', 'a ', '\\u0001'].map(
  (text) => `${text.repeat(Math.floor(900_000 / text.length))}!`,
)
const hostileRequests = [
  ['POST', '/v1/instances', 'name'],
  ['POST', '/v1/instances', 'model'],
  ['PATCH', '/v1/instances/', 'external_id'],
  ['POST', '/skills/install', 'slug'],
  ['POST', '/responses', 'model'],
] as const

const attacks = {
  bodies(means: Means) {
    ones ??= Buffer.from(`{"model":"openclaw","input":[${'1,'.repeat(bodyBytes / 2 - 32)}1]}`)
    const body = ones
    return clients(10, means, (client) => means.send('POST', sessionPath(means.instanceId, client), body))
  },
  'slow clients': (means: Means) => clients(300, means, () => trickle(means)),
  'answers of many items': (means: Means) =>
    clients(20, means, (client) => means.send('POST', sessionPath(means.instanceId, client), turnOf('x'))),
  'streams of ignored events': (means: Means) =>
    clients(20, means, (client) => means.send('POST', sessionPath(means.instanceId, client), turnOf('x', true))),
  'streams of output': (means: Means) =>
    clients(20, means, (client) => means.send('POST', sessionPath(means.instanceId, client), turnOf('x', true))),
  'frames of a client': (means: Means) => clients(20, means, (client) => floodSocket(means, client)),
  'frames of a gateway': (means: Means) =>
    clients(20, means, () => means.send('GET', `/v1/instances/${means.instanceId}/sessions`)),
  'turns up to the limit': (means: Means) =>
    clients(1100, means, (client) => means.send('POST', sessionPath(means.instanceId, client), turnOf('x', true))),
  'WebSockets up to the limit': (means: Means) => clients(1100, means, (client) => holdSocket(means, client)),
  'waits up to the limit': (means: Means) =>
    clients(150, means, async () => {
      await means.send('GET', `/v1/instances/${means.instanceId}/status?wait=stopped&timeout=60`)
      await sleep(5 * paceMs) // more than wait are answered at once
    }),
  lists: (means: Means) =>
    clients(10, means, async (client) => {
      await means.send('GET', client % 2 === 0 ? '/v1/instances?limit=1000' : '/v1/organization/events?limit=1000')
      await sleep(paceMs)
    }),
  'texts for patterns': (means: Means) =>
    clients(10, means, async () => {
      const [method, path, field] = hostileRequests[Math.floor(Math.random() * hostileRequests.length)] ?? []
      const text = hostileTexts[Math.floor(Math.random() * hostileTexts.length)] ?? ''
      if (!method) return
      const isOfInstance = path === '/skills/install' || path === '/responses'
      const url = isOfInstance ? `/v1/instances/${means.instanceId}${path}` : path
      const body = `{"input":"x","${field}":"${text}"}`
      await means.send(method, url.endsWith('/') ? url + means.instanceId : url, body)
      await sleep(paceMs)
    }),
  'guesses of relay tokens': (means: Means) =>
    clients(50, means, () => {
      const guess = { authorization: `Bearer ${newRelayToken()}` }
      return means.send('POST', '/relay/openai/v1/responses', '{}', guess)
    }),
} as const

/** The attack that runs. */
let running: { ending: AbortController; ended: Promise<unknown>; answers: Answers } | undefined

function begin(attack: Attack) {
  const ending = new AbortController()
  const answers: Answers = {}
  const dispatcher = new Agent({ connections: 2000, headersTimeout: 0, bodyTimeout: 0 })
  const { signal } = ending
  const send: Means['send'] = async (method, path, body, auth = attack.auth) => {
    const headers = { ...auth, ...(body !== undefined && json) }
    try {
      const options = { method, headers, dispatcher, signal, ...(body !== undefined && { body }) }
      const answer = await request(`http://127.0.0.1:${attack.port}${path}`, options)
      count(answers, answer.statusCode)
      await answer.body.dump({ limit: Number.MAX_SAFE_INTEGER, signal })
      if (answer.statusCode === 429 || answer.statusCode === 503) await sleep(afterRefusalMs)
    } catch {
      if (!signal.aborted) count(answers, 'none')
      await sleep(afterRefusalMs)
    }
  }
  const ended = attacks[attack.kind]({ ...attack, signal, answers, send }).finally(() => dispatcher.destroy())
  running = { ending, ended, answers }
}

/** Begins an attack, or ends it and answers what came of it. */
answerMessages(async (attack: Attack | 'end') => {
  if (attack !== 'end') {
    begin(attack)
    return {}
  }
  running?.ending.abort()
  await running?.ended
  return running?.answers
})
