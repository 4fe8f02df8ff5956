import { join } from 'node:path'
import { startFakeModelProvider } from '../test/support/fake-model-provider.mjs'
import { processesIn } from '../test/support/run-folder.ts'
import { turnsInTurn } from './agent-turns.ts'
import { secondsOf, until, withChowder } from './agents.ts'
import { type Fact, fact, median, spread } from './figures.ts'
import { proportionalMb } from './process.ts'
import type { Tenant } from './tenant.ts'

const agents = 6
const rounds = 2
const turns = 10
/** The shortest that the API takes. */
const idleSeconds = 60
const asleepTimeoutMs = 5 * 60_000
const startTimeoutMs = 10 * 60_000

/** How long an agent takes to run and to say its first word, in seconds after something was asked for. */
interface FirstWord {
  firstByte: number
  firstWord: number
}

/** The seconds of a streamed turn until the first byte of its body, and until the first word of the agent. */
export async function firstWordOf(tenant: Tenant, id: string): Promise<FirstWord> {
  const path = `/v1/instances/${id}/session/bench/responses`
  const askedAt = performance.now()
  const seconds = () => (performance.now() - askedAt) / 1000
  const { body } = await tenant.open('POST', path, { model: 'openclaw', input: 'Hello', stream: true })
  if (!body) throw new Error('a turn was answered without a body')
  let text = ''
  let firstByte: number | undefined
  let firstWord: number | undefined
  for await (const chunk of body.pipeThrough(new TextDecoderStream())) {
    firstByte ??= seconds()
    text += chunk
    if (text.includes('event: response.output_text.delta')) firstWord ??= seconds()
  }
  if (firstByte === undefined || firstWord === undefined || !text.includes('event: response.completed'))
    throw new Error(`a turn ended otherwise: ${text.slice(-500)}`)
  return { firstByte, firstWord }
}

/** Creates an agent and waits until it runs; the API tells at once. */
export async function createAndWait(tenant: Tenant, fields: object = {}): Promise<string> {
  const { id } = await tenant.call<{ id: string }>('POST', '/v1/instances', { name: 'agent', ...fields })
  await untilStatus(tenant, id, 'running', startTimeoutMs)
  return id
}

/** Until an agent has the status, and no work is left; the API tells at once. Throws when it is in error. */
export function untilStatus(tenant: Tenant, id: string, wanted: string, timeoutMs: number): Promise<void> {
  return until(`${wanted}: ${id}`, timeoutMs, async () => {
    const path = `/v1/instances/${id}/status?wait=${wanted}&timeout=30`
    const { status } = await tenant.call<{ status: string }>('GET', path)
    if (status === 'error') throw new Error(`the instance ${id} is in error`)
    return status === wanted
  })
}

const processesOf = (dataDir: string, id: string) => processesIn(join(dataDir, 'sandboxes', id))

/** The memory of all processes of an agent, in MB. */
async function memoryOf(dataDir: string, id: string): Promise<number> {
  const pids = await processesOf(dataDir, id)
  return (await Promise.all(pids.map(proportionalMb))).reduce((sum, one) => sum + one, 0)
}

/**
 * From a create, and from a request that wakes a sleeping agent, to the first word; and the memory of an agent that has
 * started, that has answered, and that sleeps. One agent at a time starts or wakes. The platform decides whether an agent
 * sleeps stopped or frozen: figures of the other kind are left out.
 */
export async function measureFirstWord(report: (text: string) => void): Promise<Fact[]> {
  const provider = await startFakeModelProvider()
  try {
    return await withChowder({ ANTHROPIC_BASE_URL: provider.url }, report, ({ tenant, dataDir }) =>
      measureAgents(tenant, dataDir, report),
    )
  } finally {
    await provider.close()
  }
}

async function measureAgents(tenant: Tenant, dataDir: string, report: (text: string) => void): Promise<Fact[]> {
  const ids: string[] = []
  const cold: number[] = []
  const ready: number[] = []
  const used: number[] = []
  report('a first agent, which does not count')
  const first = await createAndWait(tenant)
  await firstWordOf(tenant, first)
  await tenant.call('DELETE', `/v1/instances/${first}`)
  for (let made = 1; made <= agents; made += 1) {
    report(`create to the first word, agent ${made} of ${agents}`)
    let id = ''
    const running = await secondsOf(async () => {
      id = await createAndWait(tenant)
    })
    ready.push(await memoryOf(dataDir, id))
    cold.push(running + (await firstWordOf(tenant, id)).firstWord)
    await turnsInTurn(tenant, id, turns)
    used.push(await memoryOf(dataDir, id))
    ids.push(id)
  }

  const asleep: number[] = []
  const woken: FirstWord[] = []
  let isFrozen = false
  for (const id of ids) await tenant.call('PATCH', `/v1/instances/${id}`, { idle_timeout_seconds: idleSeconds })
  for (let round = 1; round <= rounds; round += 1) {
    report(`${agents} agents fall asleep and are woken, round ${round} of ${rounds}`)
    await Promise.all(ids.map((id) => untilStatus(tenant, id, 'stopped', asleepTimeoutMs)))
    isFrozen = (await processesOf(dataDir, ids[0] ?? '')).length > 0
    for (const id of ids) {
      asleep.push(await memoryOf(dataDir, id))
      woken.push(await firstWordOf(tenant, id))
    }
  }
  const kind = isFrozen ? 'frozen' : 'stopped'
  return [
    spread('create to the first word', cold, 's'),
    spread(
      `wake to the first byte, ${kind}`,
      woken.map(({ firstByte }) => firstByte),
      's',
    ),
    spread(
      `wake to the first word, ${kind}`,
      woken.map(({ firstWord }) => firstWord),
      's',
    ),
    fact('memory of an agent, ready', median(ready), 'MB'),
    fact(`memory of an agent, after ${turns} turns`, median(used), 'MB'),
    fact(`memory of an agent, asleep, ${kind}`, median(asleep), 'MB'),
  ]
}
