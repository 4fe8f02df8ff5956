// A client of Chowder in TypeScript, with types that are generated from its OpenAPI document:
//   npm install && npm run generate && CHOWDER_URL=http://127.0.0.1:8080 CHOWDER_KEY=chd_org_… npm start
import createClient from 'openapi-fetch'
import type { components, paths } from './api.d.ts'

type Instance = components['schemas']['Instance']

const { CHOWDER_URL: baseUrl = 'http://127.0.0.1:8080', CHOWDER_KEY: key = '' } = process.env
const chowder = createClient<paths, 'application/json'>({ baseUrl, headers: { authorization: `Bearer ${key}` } })

/** The data of an answer. Throws the sentence of the error, with the id of the request. */
function need<T>({ data, error }: { data?: T; error?: components['schemas']['ApiError'] }): T {
  if (data !== undefined) return data
  throw new Error(error ? `${error.error.message} (${error.error.code}, ${error.error.request_id})` : 'no answer')
}

/** Creates an agent and waits until it runs. A repetition with the same key makes no second agent. */
async function create(name: string): Promise<Instance> {
  const header = { 'idempotency-key': crypto.randomUUID() }
  const created = need(await chowder.POST('/v1/instances', { params: { header }, body: { name } }))
  const path = { instance_id: created.id }
  const query = { wait: 'running', timeout: 60 } as const
  let { status } = created
  while (status === 'provisioning') {
    const latest = need(await chowder.GET('/v1/instances/{instance_id}/status', { params: { path, query } }))
    status = latest.status
  }
  const instance = need(await chowder.GET('/v1/instances/{instance_id}', { params: { path } }))
  if (instance.status !== 'running') throw new Error(`The agent did not start: ${instance.error_message}`)
  return instance
}

/** Sends a message, and returns the text of the answer. */
async function ask(instance: Instance, session: string, text: string): Promise<string> {
  const { output } = need(
    await chowder.POST('/v1/instances/{instance_id}/session/{session_id}/responses', {
      params: { path: { instance_id: instance.id, session_id: session } },
      body: { model: 'openclaw', input: [{ type: 'message', role: 'user', content: text }] },
    }),
  )
  return output
    .flatMap((item) => (item.type === 'message' ? item.content : []))
    .map((part) => part.text)
    .join('')
}

/** Sends a message, and yields the text of the answer as it comes. */
async function* say(instance: Instance, session: string, input: string): AsyncGenerator<string> {
  const body = need(
    await chowder.POST('/v1/instances/{instance_id}/session/{session_id}/responses', {
      params: { path: { instance_id: instance.id, session_id: session } },
      body: { model: 'openclaw', input, stream: true },
      parseAs: 'stream',
    }),
  )
  let rest = ''
  for await (const text of body?.pipeThrough(new TextDecoderStream()) ?? []) {
    const lines = (rest + text).split('\n')
    rest = lines.pop() ?? ''
    for (const line of lines) {
      if (!line.startsWith('data: {')) continue
      const event: components['schemas']['ResponseStreamEvent'] = JSON.parse(line.slice('data: '.length))
      if (event.type === 'response.output_text.delta') yield event.delta
      if (event.type === 'response.failed') throw new Error(event.response.error?.message)
    }
  }
}

const agent = await create('example')
console.log(`${agent.name} is ${agent.status}`)
console.log(await ask(agent, 'user-42', 'Good morning'))
for await (const text of say(agent, 'user-42', 'Hello')) process.stdout.write(text)
console.log()

const list: Instance[] = need(await chowder.GET('/v1/instances'))
console.log(`${list.length} in the list`)
const events = need(
  await chowder.GET('/v1/instances/{instance_id}/events', { params: { path: { instance_id: agent.id } } }),
)
console.log(events.map(({ type }) => type).join(' '))

const missing = await chowder.GET('/v1/instances/{instance_id}', {
  params: { path: { instance_id: crypto.randomUUID() } },
})
console.log(missing.error?.error.code)
await chowder.DELETE('/v1/instances/{instance_id}', { params: { path: { instance_id: agent.id } } })
