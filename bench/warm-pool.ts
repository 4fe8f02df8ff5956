import { freePort } from '#platform/free-port.ts'
import { Env } from '#settings/env.ts'
import { startFakeModelProvider } from '../test/support/fake-model-provider.mjs'
import { secondsOf, until, withChowder } from './agents.ts'
import { type Fact, fact, spread } from './figures.ts'
import { createAndWait, firstWordOf } from './first-word.ts'
import type { Tenant } from './tenant.ts'

const poolSize = 3
const rounds = 6
const together = 10
const fillTimeoutMs = 10 * 60_000
/** What a create may say of an agent beside its name. */
const overrides = { instructions: 'Answer in one short sentence.', metadata: { customer: 'bench' } }

/**
 * Creates of agents that a pool keeps ready: until they run, and say their first word; and more creates at once than the
 * pool has. Empty for a Chowder without a pool.
 */
export async function measureWarmPool(report: (text: string) => void): Promise<Fact[]> {
  if (!('WARM_POOL' in Env.properties)) return []
  const provider = await startFakeModelProvider()
  const metricsPort = await freePort()
  const env = { ANTHROPIC_BASE_URL: provider.url, WARM_POOL: String(poolSize), METRICS_PORT: String(metricsPort) }
  try {
    return await withChowder(env, report, ({ tenant }) =>
      measurePool(tenant, `http://127.0.0.1:${metricsPort}/metrics`, report),
    )
  } finally {
    await provider.close()
  }
}

/** How many agents of all pools are ready. */
async function countReady(metricsUrl: string): Promise<number> {
  const text = await (await fetch(metricsUrl)).text()
  const values = [...text.matchAll(/^chowder_pool_ready(?:\{[^}]*\})? (\d+)/gm)].map(([, value]) => Number(value))
  return values.reduce((sum, one) => sum + one, 0)
}

async function measurePool(tenant: Tenant, metricsUrl: string, report: (text: string) => void): Promise<Fact[]> {
  const untilFull = () => until('a full pool', fillTimeoutMs, async () => (await countReady(metricsUrl)) >= poolSize)
  const remove = (id: string) => tenant.call('DELETE', `/v1/instances/${id}`)

  const running: number[] = []
  const firstWords: number[] = []
  const changed: number[] = []
  for (let round = 1; round <= rounds; round += 1) {
    for (const fields of [{}, overrides]) {
      report(`a create from the pool${fields === overrides ? ', with overrides' : ''}, round ${round} of ${rounds}`)
      await untilFull()
      let id = ''
      const seconds = await secondsOf(async () => {
        id = await createAndWait(tenant, fields)
      })
      const seen = fields === overrides ? changed : running
      seen.push(seconds)
      if (seen === running) firstWords.push(seconds + (await firstWordOf(tenant, id)).firstWord)
      await remove(id)
    }
  }

  report(`${together} creates at once, ${poolSize} in the pool`)
  await untilFull()
  const startedAt = performance.now()
  const created = await Promise.all(
    Array.from({ length: together }, async () => {
      const id = await createAndWait(tenant)
      return { id, seconds: (performance.now() - startedAt) / 1000 }
    }),
  )
  await Promise.all(created.map(({ id }) => remove(id)))
  const seconds = created.map((one) => one.seconds).sort((a, b) => a - b)
  return [
    spread('create to running, from the pool', running, 's'),
    spread('create to running, from the pool, with overrides', changed, 's'),
    spread('create to the first word, from the pool', firstWords, 's'),
    fact(
      `${together} creates at once, ${poolSize} in the pool: the first ${poolSize}`,
      seconds[poolSize - 1] ?? 0,
      's',
    ),
    fact(`${together} creates at once, ${poolSize} in the pool: all`, seconds.at(-1) ?? 0, 's'),
  ]
}
