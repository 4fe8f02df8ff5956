import type pg from 'pg'
import { pino } from 'pino'
import { createDb } from '#database/client.ts'
import { newId } from '#platform/ids.ts'
import { type BegunCall, createCallWriter } from '#relay/usage/call-writer.ts'
import { present } from '../test/support/present.ts'
import type { Round } from './figures.ts'
import type { Owner } from './setup.ts'

const calls = 10_000
/** As many as a statement of Chowder writes. */
const batchSize = 500
const timeoutMs = 60_000

const usage = {
  inputTokens: 1200,
  cacheReadTokens: 800,
  cacheWriteTokens: 0,
  outputTokens: 60,
  reasoningTokens: 0,
  cost: 0.0042,
}
const columns = `id, organization_id, instance_id, session, cause, provider, model, began_at, outcome, input_tokens,
  cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost`

/** How many calls a second the relay's writer writes when very many end at once. */
async function writtenPerSecond(pool: pg.Pool, organizationId: string, owners: Owner[]): Promise<number> {
  const writer = createCallWriter(createDb(pool), newId(), pino({ level: 'silent' }))
  const made = Array.from({ length: calls }, (_, at): BegunCall => {
    const { instanceId } = present(owners[at % owners.length])
    const told = { session: 'agent:main:main', cause: 'api', model: 'gpt-5' } as const
    return { id: newId(), organizationId, instanceId, provider: 'openai', beganAt: performance.now(), ...told }
  })
  const startedAt = performance.now()
  for (const call of made) writer.begin(call)
  for (const call of made) writer.end(call, 'answered', usage)
  await writer.close(timeoutMs)
  const seconds = (performance.now() - startedAt) / 1000
  const { rows } = await pool.query<{ count: number }>('SELECT count(*)::int AS count FROM model_calls')
  if (present(rows[0]).count !== calls) throw new Error(`of ${calls} calls ${rows[0]?.count} were written`)
  return calls / seconds
}

/** How many the database itself makes of nothing, in statements of as many rows. */
async function insertedPerSecond(pool: pg.Pool, organizationId: string, { instanceId }: Owner): Promise<number> {
  const startedAt = performance.now()
  for (let written = 0; written < calls; written += batchSize) {
    await pool.query(
      `INSERT INTO model_calls (${columns})
       SELECT gen_random_uuid(), $1, $2, 'agent:main:main', 'api', 'openai', 'gpt-5', now(), 'answered', 1200, 800, 0, 60, 0,
         0.0042 FROM generate_series(1, $3)`,
      [organizationId, instanceId, batchSize],
    )
  }
  return calls / ((performance.now() - startedAt) / 1000)
}

/** The calls of models that are written a second, beside rows of the same table that the database makes by itself. */
export async function measureUsageWrites(pool: pg.Pool, owners: Owner[], rounds: number): Promise<Round[]> {
  const { rows } = await pool.query<{ id: string }>('SELECT id FROM organizations LIMIT 1')
  const { id } = present(rows[0])
  const measured: Round[] = []
  while (measured.length < rounds) {
    await pool.query('TRUNCATE model_calls')
    const limit = await insertedPerSecond(pool, id, present(owners[0]))
    await pool.query('TRUNCATE model_calls')
    measured.push({ chowder: await writtenPerSecond(pool, id, owners), limit })
  }
  return measured
}
