import { setTimeout as sleep } from 'node:timers/promises'
import { newId } from '#platform/ids.ts'
import { until } from './agents.ts'
import { type Fact, type Figure, fact, figure, median, type Round } from './figures.ts'
import type { Tenant } from './tenant.ts'

const pairs = 30
/** Less than the 100 background turns that an instance may have. */
const accepted = 90
const endTimeoutMs = 5 * 60_000
const readers = 200
/** Forty words in some twelve seconds. */
const longInput = 'Hello [[fake:words=40]] [[fake:chunk-delay=300]]'

interface Answer {
  id: string
  status: string
  error: { code: string; message: string } | null
}

const pathOf = (agent: string, session = newId()) => `/v1/instances/${agent}/session/${session}/responses`
const asked = (input: string) => ({ model: 'openclaw', input })

/** The time of one streamed turn, in ms. */
async function streamedTurn(tenant: Tenant, path: string, isBackground: boolean): Promise<number> {
  const begun = performance.now()
  const body = { ...asked('Hello'), stream: true, ...(isBackground && { background: true }) }
  const text = await tenant.stream('POST', path, body)
  if (!text.includes('event: response.completed')) throw new Error(`a turn ended otherwise: ${text.slice(-500)}`)
  return performance.now() - begun
}

/** Streamed turns in the background beside others of the same session, in turn. */
async function measureOverhead(tenant: Tenant, agent: string): Promise<Round[]> {
  const path = pathOf(agent)
  const rounds: Round[] = []
  await streamedTurn(tenant, path, false) // does not count
  for (let pair = 0; pair < pairs; pair += 1) {
    const isFirst = pair % 2 === 0
    const first = await streamedTurn(tenant, path, isFirst)
    const second = await streamedTurn(tenant, path, !isFirst)
    rounds.push(isFirst ? { chowder: first, limit: second } : { chowder: second, limit: first })
  }
  return rounds
}

/** Accepts many background turns at once, and waits for the last of them; both a second. */
async function measureAccepted(tenant: Tenant, agent: string) {
  const begun = performance.now()
  const turns = await Promise.all(
    Array.from({ length: accepted }, () =>
      tenant.call<Answer>('POST', pathOf(agent), { ...asked('Hello'), background: true }),
    ),
  )
  const acceptedMs = performance.now() - begun
  for (const { id } of turns) {
    await until('the end of a background turn', endTimeoutMs, async () => {
      const { status, error } = await tenant.call<Answer>('GET', `/v1/instances/${agent}/responses/${id}`)
      if (status === 'failed') throw new Error(`a background turn failed: ${error?.message}`)
      return status === 'completed'
    })
  }
  return { perSecond: (accepted / acceptedMs) * 1000, endedPerSecond: (accepted / (performance.now() - begun)) * 1000 }
}

/** How much later than a single reader many readers of one turn get its last event, in ms. */
async function measureReaders(tenant: Tenant, agent: string) {
  const { id } = await tenant.call<Answer>('POST', pathOf(agent), { ...asked(longInput), background: true })
  await sleep(3000)
  const follow = async () => {
    const text = await tenant.stream('GET', `/v1/instances/${agent}/responses/${id}?stream=true&starting_after=1`)
    if (!text.includes('event: response.completed')) throw new Error(`a stream ended otherwise: ${text.slice(-500)}`)
    return performance.now()
  }
  const ends = await Promise.all(Array.from({ length: readers }, follow))
  return Math.max(...ends) - Math.min(...ends)
}

/** Background turns of a real agent: what they cost beside others, how fast they are accepted, and many readers of one. */
export async function measureBackgroundTurns(
  tenant: Tenant,
  agent: string,
  report: (text: string) => void,
): Promise<(Fact | Figure)[]> {
  report('turns in the background')
  const overhead = await measureOverhead(tenant, agent)
  const { perSecond, endedPerSecond } = await measureAccepted(tenant, agent)
  report(`${readers} readers of a turn`)
  const spreadMs = await measureReaders(tenant, agent)
  return [
    figure('background turn', 'ms', { atMost: 1.3 }, [
      { chowder: median(overhead.map(({ chowder }) => chowder)), limit: median(overhead.map(({ limit }) => limit)) },
    ]),
    fact(`background turns accepted, ${accepted} at once`, perSecond, '/s'),
    fact('  of them ended', endedPerSecond, '/s'),
    fact(`last of ${readers} readers of a turn, after the first`, spreadMs, 'ms'),
  ]
}
