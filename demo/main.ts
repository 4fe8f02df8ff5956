import { join } from 'node:path'
import type { ModelProvider } from '#database/schema.ts'
import { defaultModel } from '#openclaw/models/models.ts'
import { installRelease } from '#openclaw/release/install.ts'
import { defaultRelease, openclawVersion } from '#openclaw/releases.ts'
import { prepareDataFolder } from '#platform/data-folder.ts'
import { poll } from '#platform/poll.ts'
import { makeTemporaryDataDir, messagesIn, startChowder } from './chowder-process.ts'
import { type Live, show, showFact, showTitle, showWarning, step } from './display.ts'
import { startEchoModel } from './echo-model.ts'

/** The first start on a machine installs OpenClaw, which takes minutes on a slow line. */
const runningTimeoutMs = 15 * 60_000
const answerTimeoutMs = 3 * 60_000
const pauseMs = 300
const session = 'demo'
const name = 'Ada'
const questions = {
  first: `Hello! My name is ${name}. Please greet me.`,
  second: 'What is my name?',
  streamed: 'Tell me in one sentence what you know about me.',
}

const vendors = { anthropic: 'ANTHROPIC', openai: 'OPENAI', gemini: 'GEMINI' } as const satisfies Record<
  ModelProvider,
  string
>

/** Which model answers: a real one when the environment holds a key for it. */
interface Model {
  provider: ModelProvider
  key: string
  /** How the key is written in the commands shown. */
  shownKey: string
  about: string
  isEcho: boolean
  /** Where Chowder is to send model calls to, if not to the vendor. */
  env: Record<string, string>
}

/** Ready to be pasted into a shell that has URL, KEY and ID; lines fit into 80 columns. */
function curl(options: string, path: string, { auth = true, data = '' } = {}): string {
  const headers = [
    ...(auth ? ['-H "authorization: Bearer $KEY"'] : []),
    ...(data ? ["-H 'content-type: application/json'"] : []),
  ]
  return [`curl ${options} $URL${path}`, `  ${headers.join(' ')}`, ...(data ? [`  -d ${data}`] : [])].join(' \\\n')
}
const quote = (body: object) => `'${JSON.stringify(body)}'`
/** In double quotes, so that the shell fills in a variable. */
const quoteLoosely = (body: object) => `"${JSON.stringify(body).replaceAll('"', '\\"')}"`

const ending = new AbortController()
/** Undoes what the demo did, in reverse, also after a part of it that failed. */
const cleanUp = new AsyncDisposableStack()

async function chooseModel(): Promise<Model> {
  for (const provider of Object.keys(vendors) as ModelProvider[]) {
    const vendor = vendors[provider]
    const key = process.env[`${vendor}_API_KEY`]
    if (!key) continue
    const baseUrl = process.env[`${vendor}_BASE_URL`]
    return {
      provider,
      key,
      shownKey: `$${vendor}_API_KEY`,
      about: `${provider}/${defaultModel(defaultRelease, provider)}, with the key in ${vendor}_API_KEY`,
      isEcho: false,
      env: baseUrl ? { [`${vendor}_BASE_URL`]: baseUrl } : {},
    }
  }
  const echo = await startEchoModel()
  cleanUp.defer(() => echo.stop())
  return {
    provider: 'anthropic',
    key: 'offline-echo',
    shownKey: 'offline-echo',
    about: 'OFFLINE ECHO MODEL: no real one, it only repeats what it was told',
    isEcho: true,
    env: { ANTHROPIC_BASE_URL: echo.url },
  }
}

/** The folder everything happens in; a temporary one goes away with the demo. */
async function chooseDataDir(): Promise<{ dataDir: string; about: string }> {
  const given = process.env.CHOWDER_DATA_DIR
  if (given) {
    await prepareDataFolder(given)
    return { dataDir: given, about: `${given} (CHOWDER_DATA_DIR, it stays)` }
  }
  const temporary = await makeTemporaryDataDir('chowder-demo-')
  cleanUp.defer(() => temporary.remove())
  return { dataDir: temporary.path, about: `${temporary.path} (removed at the end)` }
}

/** An answer of the API with its own sentence on what is wrong: nobody needs the log then. */
class Refused extends Error {}

/** The demo's own client: one JSON call. Throws Refused for an answer that is not 2xx. */
function client(url: string) {
  let key: string | undefined
  async function send(method: string, path: string, body?: object, timeoutMs = 30_000): Promise<Response> {
    const answer = await fetch(url + path, {
      method,
      headers: { ...(key && { authorization: `Bearer ${key}` }), ...(body && { 'content-type': 'application/json' }) },
      ...(body && { body: JSON.stringify(body) }),
      signal: AbortSignal.any([ending.signal, AbortSignal.timeout(timeoutMs)]),
    })
    if (!answer.ok) throw new Refused(((await answer.json()) as { error: { message: string } }).error.message)
    return answer
  }
  return {
    useKey: (given: string) => (key = given),
    send,
    json: async <T>(...request: Parameters<typeof send>) => (await (await send(...request)).json()) as T,
  }
}
type Client = ReturnType<typeof client>

interface Turn {
  status: string
  output: { type: string; content?: { type: string; text?: string }[] }[]
}

const textOf = ({ output }: Turn) => output.flatMap(({ content = [] }) => content.map(({ text = '' }) => text)).join('')

/** An answer only counts when it shows that the agent knows who it talks to. */
function checkAnswer(text: string): void {
  if (!text.includes(name)) throw new Error(`the answer does not mention ${name}: ${JSON.stringify(text)}`)
}

async function waitUntilRunning(api: Client, id: string, logFile: string, live: Live): Promise<void> {
  const isRunning = async () => {
    const { status, step } = await api.json<{ status: string; step: string | null }>(
      'GET',
      `/v1/instances/${id}/status`,
    )
    if (status === 'error') {
      const { error_message } = await api.json<{ error_message: string }>('GET', `/v1/instances/${id}`)
      throw new Refused(error_message)
    }
    const installing = step === 'prepareRelease' ? `: ${(await messagesIn(logFile)).at(-1)}` : ''
    if (status !== 'running') live.now(`${status}${step ? `, step ${step}${installing}` : ''}`)
    return status === 'running'
  }
  const options = { pauseMs, timeoutMs: runningTimeoutMs, signal: ending.signal }
  if (!(await poll(isRunning, options))) throw new Error('the instance is still not running')
}

/** Shows the words of a streamed answer as they come. Returns them all. */
async function showStream(answer: Response, live: Live): Promise<string> {
  let shown = ''
  let rest = ''
  for await (const text of answer.body?.pipeThrough(new TextDecoderStream()) ?? []) {
    const events = (rest + text).split('\n\n')
    rest = events.pop() ?? ''
    for (const event of events) {
      const data = /^data: (\{.*\})$/m.exec(event)?.[1]
      const { type, delta } = data ? (JSON.parse(data) as { type: string; delta?: string }) : {}
      if (type === 'error' || type === 'response.failed') throw new Error(`the stream failed: ${data}`)
      if (type !== 'response.output_text.delta' || !delta) continue
      live.print(delta)
      shown += delta
    }
  }
  return shown
}

/** Shows the end of Chowder's log: the reason of a failure is often there, and the folder may go away. */
async function showLog(logFile: string): Promise<void> {
  const messages = await messagesIn(logFile).catch(() => [])
  show(
    `\n  Chowder’s log ended with:\n${messages
      .slice(-8)
      .map((line) => `    ${line}`)
      .join('\n')}`,
  )
}

async function walk(model: Model, dataDir: string, logFile: string): Promise<void> {
  await step(
    'Install OpenClaw, once for this machine',
    `npm run release -- ${defaultRelease}`,
    (live) => installRelease({ dataDir, release: defaultRelease, progress: live.now, signal: ending.signal }),
    () => `OpenClaw ${openclawVersion(defaultRelease)} is there`,
  )

  const chowder = await step(
    'Start Chowder with its own database and queue',
    'npm start',
    (live) => {
      live.now('starting')
      return startChowder({ role: 'all', dataDir, logFile, env: model.env, signal: ending.signal })
    },
    ({ url }) => `it listens on ${url}`,
  )
  cleanUp.defer(() => chowder.stop('SIGINT'))
  const api = client(chowder.url)

  const organization = { name: 'Demo' }
  await step(
    'Sign up',
    `URL=${chowder.url}\n${curl('-s', '/v1/organization/signup', { auth: false, data: quote(organization) })}`,
    () => api.json<{ api_key: string }>('POST', '/v1/organization/signup', organization),
    ({ api_key }) => {
      api.useKey(api_key)
      return `KEY=${api_key.slice(0, 12)}…`
    },
  )

  const shownKeys = { model_api_keys: { [model.provider]: model.shownKey } }
  await step(
    'Give it the model provider’s key',
    curl('-s -X PATCH', '/v1/organization', { data: quoteLoosely(shownKeys) }),
    () => api.send('PATCH', '/v1/organization', { model_api_keys: { [model.provider]: model.key } }),
    () => 'stored, sealed',
  )

  const agent = { name: 'my first agent', model_provider: model.provider }
  const { id } = await step(
    'Create an agent',
    curl('-s', '/v1/instances', { data: quote(agent) }),
    () => api.json<{ id: string }>('POST', '/v1/instances', agent),
    (created) => `ID=${created.id}`,
  )

  await step(
    'Wait until it runs',
    curl('-s', '/v1/instances/$ID/status?wait=running\\&timeout=60'),
    (live) => waitUntilRunning(api, id, logFile, live),
    () => 'running: an OpenClaw gateway of its own',
  )

  const path = `/session/${session}/responses`
  const turn = (input: string) => ({ model: defaultModel(defaultRelease, model.provider), input })
  const curlTurn = (body: object, options: string) => curl(options, `/v1/instances/$ID${path}`, { data: quote(body) })
  for (const [title, input] of [
    ['Ask it something', questions.first],
    ['Ask again: it remembers', questions.second],
  ] as const) {
    await step(
      title,
      curlTurn(turn(input), '-s'),
      async (live) => {
        live.now('the agent thinks')
        const text = textOf(await api.json<Turn>('POST', `/v1/instances/${id}${path}`, turn(input), answerTimeoutMs))
        live.print(text)
        checkAnswer(text)
      },
      () => 'answered',
    )
  }

  const streamed = { ...turn(questions.streamed), stream: true }
  await step(
    'Ask for a stream',
    curlTurn(streamed, '-sN'),
    async (live) => {
      live.now('the agent thinks')
      const answer = await api.send('POST', `/v1/instances/${id}${path}`, streamed, answerTimeoutMs)
      checkAnswer(await showStream(answer, live))
    },
    () => 'answered, word by word as it was written',
  )

  await step(
    'Delete the agent',
    curl('-s -X DELETE', '/v1/instances/$ID'),
    () => api.send('DELETE', `/v1/instances/${id}`),
    () => 'gone from the moment of the answer',
  )
}

async function main(): Promise<void> {
  const startedAt = performance.now()
  const model = await chooseModel()
  const { dataDir, about } = await chooseDataDir()
  const logFile = join(dataDir, 'chowder-demo.log')

  showTitle('Chowder, from nothing to an agent’s answer')
  showFact('Model', model.about)
  if (model.isEcho) showFact('', 'A real one needs ANTHROPIC_API_KEY, OPENAI_API_KEY or GEMINI_API_KEY.')
  showFact('Data', about)
  await walk(model, dataDir, logFile).catch(async (error: unknown) => {
    if (error instanceof Refused && !model.isEcho)
      error.message += ` The demo took the key from ${model.shownKey}: correct it, or unset it for the offline model.`
    else if (!ending.signal.aborted) await showLog(logFile)
    throw error
  })
  const tidy = async (live: Live) => {
    live.now('stopping')
    await cleanUp.disposeAsync()
  }
  await step('Stop Chowder and clean up', 'Ctrl-C', tidy, () => 'nothing runs any more')
  show(`\n  All of it took ${((performance.now() - startedAt) / 1000).toFixed(0)} s. With your own hands: npm start\n`)
}

for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => ending.abort())
try {
  await main()
} catch (error) {
  process.exitCode = 1
  if (ending.signal.aborted) showWarning('\n  Interrupted: stopping Chowder and its agent.')
  else show(`\n  ${error instanceof Error ? error.message : error}\n`)
  await cleanUp.disposeAsync()
}
