import pg from 'pg'
import { reachEmbeddedPostgres } from '#database/embedded.ts'
import { poolOrganizationId } from '#instances/warm-pool.ts'
import { startFakeModelProvider } from '../test/support/fake-model-provider.mjs'
import { present } from '../test/support/present.ts'
import { secondsOf, until, withChowder } from './agents.ts'
import { type Fact, fact, spread } from './figures.ts'
import { createAndWait, firstWordOf } from './first-word.ts'
import type { Tenant } from './tenant.ts'

const poolSize = 3
const rounds = 6
const together = 10
const fillTimeoutMs = 10 * 60_000
/** The fields of a create that a worker applies to a warm agent, which otherwise has them all. */
const overrides = { instructions: 'Answer in one short sentence.', metadata: { customer: 'bench' } }

/**
 * Creates of agents that a pool keeps ready: until they run, and say their first word; and more creates at once than the
 * pool has.
 */
export async function measureWarmPool(report: (text: string) => void): Promise<Fact[]> {
  const provider = await startFakeModelProvider()
  try {
    const env = { ANTHROPIC_BASE_URL: provider.url, WARM_POOL: String(poolSize) }
    return await withChowder(env, report, async ({ tenant, dataDir }) => {
      const database = new pg.Client(present(await reachEmbeddedPostgres(dataDir)))
      await database.connect()
      return measurePool(tenant, database, report).finally(() => database.end())
    })
  } finally {
    await provider.close()
  }
}

async function measurePool(tenant: Tenant, database: pg.Client, report: (text: string) => void): Promise<Fact[]> {
  const isFull = async () => {
    const { rows } = await database.query(
      'SELECT count(*)::integer AS ready FROM instances WHERE organization_id = $1 AND ready_at IS NOT NULL',
      [poolOrganizationId],
    )
    return rows[0].ready >= poolSize
  }
  const untilFull = () => until('a full pool', fillTimeoutMs, isFull)
  const remove = (id: string) => tenant.call('DELETE', `/v1/instances/${id}`)

  report('the first agent, which has no pool yet')
  await createAndWait(tenant)
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
