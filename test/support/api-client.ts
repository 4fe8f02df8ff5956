import { poll } from '#platform/poll.ts'
import { noteAnswer, noteRequest } from './canary/secrets.ts'
import { requireErrorBody } from './error-body.ts'

const requestTimeoutMs = 300_000
const statusEveryMs = 200

export interface Answer {
  status: number
  headers: Headers
  // biome-ignore lint/suspicious/noExplicitAny: a test reads what it expects
  body: any
}

/** Chowder's API over HTTP, with a key, or with the token of sign-up. */
export function api(url: string, key?: string, signupToken?: string) {
  const headers = {
    ...(key !== undefined && { authorization: `Bearer ${key}` }),
    ...(signupToken !== undefined && { 'x-signup-token': signupToken }),
  }
  const send = (method: string, path: string, body: unknown, signal: AbortSignal, further = {}) => {
    noteRequest(path, headers, body)
    return fetch(`${url}${path}`, {
      method,
      headers: { ...headers, ...(body !== undefined && { 'content-type': 'application/json' }), ...further },
      ...(body !== undefined && { body: JSON.stringify(body) }),
      signal,
    })
  }

  async function call(method: string, path: string, body?: unknown, further?: object): Promise<Answer> {
    const response = await send(method, path, body, AbortSignal.timeout(requestTimeoutMs), further)
    const text = await response.text()
    noteAnswer(text)
    const parsed = text === '' ? undefined : JSON.parse(text)
    if (response.status >= 400 && path !== '/readyz') {
      requireErrorBody(response.status, parsed, response.headers.get('x-request-id'))
    }
    return { status: response.status, headers: response.headers, body: parsed }
  }

  return {
    get: (path: string) => call('GET', path),
    post: (path: string, body?: unknown, further?: object) => call('POST', path, body, further),
    put: (path: string, body: unknown) => call('PUT', path, body),
    patch: (path: string, body: unknown) => call('PATCH', path, body),
    delete: (path: string) => call('DELETE', path),
    /** The events of a streamed answer, each as it arrives. */
    async *stream(path: string, body: object, signal: AbortSignal): AsyncGenerator<StreamEvent> {
      const response = await send('POST', path, { ...body, stream: true }, signal)
      if (response.status !== 200 || !response.body) throw new Error(`${response.status} ${await response.text()}`)
      let held = ''
      for await (const text of response.body.pipeThrough(new TextDecoderStream())) {
        noteAnswer(text)
        held += text
        for (let end = held.indexOf('\n\n'); end >= 0; end = held.indexOf('\n\n')) {
          yield readEvent(held.slice(0, end))
          held = held.slice(end + 2)
        }
      }
    },
  }
}

export type Api = ReturnType<typeof api>

export interface StreamEvent {
  name: string | null
  data: string
  /** When it arrived, by this process's monotonic clock in ms. */
  at: number
}

function readEvent(text: string): StreamEvent {
  const field = (name: string) =>
    text
      .split('\n')
      .find((line) => line.startsWith(`${name}: `))
      ?.slice(name.length + 2)
  return { name: field('event') ?? null, data: field('data') ?? '', at: performance.now() }
}

/** A new organization with a key for Anthropic, and its API key. `token` is that of sign-up, where it takes one. */
export async function signUp(url: string, anthropicKey: string, token?: string): Promise<string> {
  const signedUp = await api(url, undefined, token).post('/v1/organization/signup', { name: 'Acme' })
  if (signedUp.status !== 201) throw new Error(`signup: ${signedUp.status} ${JSON.stringify(signedUp.body)}`)
  const key: string = signedUp.body.api_key
  const patched = await api(url, key).patch('/v1/organization', { model_api_keys: { anthropic: anthropicKey } })
  if (patched.status !== 200) throw new Error(`provider key: ${patched.status} ${JSON.stringify(patched.body)}`)
  return key
}

/**
 * Polls an instance as a client does until it has a status; throws when it is `error` instead, or after `timeoutMs`.
 */
export async function waitForStatus(client: Api, id: string, wanted: string, timeoutMs = 240_000): Promise<void> {
  let last: unknown
  const isWanted = async () => {
    const { status, body } = await client.get(`/v1/instances/${id}/status`)
    if (body.status === 'error') throw new Error((await client.get(`/v1/instances/${id}`)).body.error_message)
    last = body
    return status === 200 && body.status === wanted
  }
  if (!(await poll(isWanted, { pauseMs: statusEveryMs, timeoutMs })))
    throw new Error(`not ${wanted} after ${timeoutMs} ms: ${JSON.stringify(last)}`)
}

/** Where an instance's session takes messages; without a session the default one. */
export const sessionPath = (id: string, session?: string): string =>
  session === undefined
    ? `/v1/instances/${id}/responses`
    : `/v1/instances/${id}/session/${encodeURIComponent(session)}/responses`

/** Says something to an agent and returns what it answers; throws with the whole answer when it is not a clean one. */
export async function say(client: Api, path: string, input: string, model = 'openclaw'): Promise<string> {
  const { status, body } = await client.post(path, { model, input })
  if (status !== 200 || body.status !== 'completed') throw new Error(`${status} ${JSON.stringify(body)}`)
  return textOf(body)
}

/** The text of a response object. */
// biome-ignore lint/suspicious/noExplicitAny: a test reads what it expects
export const textOf = (response: any): string =>
  response.output
    .flatMap(({ content }: { content?: { text?: string }[] }) => content ?? [])
    .map(({ text = '' }) => text)
    .join('')
