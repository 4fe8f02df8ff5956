import { setTimeout as sleep } from 'node:timers/promises'
import type { Db } from '#database/client.ts'
import type { ModelProvider } from '#database/schema.ts'
import type { CallOutcome } from '#database/usage-schema.ts'
import { type Logger, logFirstAndRecovery } from '#platform/log.ts'
import { usageLost } from '#platform/metrics.ts'
import type { CallAmount, CountedUsage } from './cost.ts'
import type { ParsedRequest } from './read-request.ts'

/** How long a call's beginning or end waits for others, in ms: a short call is then written once, after its end. */
const gatherMs = 20
const retryMs = 1000
/** Calls per statement. */
const batchSize = 500
/**
 * Maximum ended calls that wait while the database is unreachable. Further ones are lost, and counted in the metrics.
 */
const maxWaiting = 20_000
/** SQLSTATE of data that PostgreSQL refuses: a retry would fail too. */
const isOfData = (error: unknown) => /^2[23]/.test(String((error as { code?: unknown }).code))

/** A call that was sent to a vendor. Data of the request is filled in as it is parsed. */
export interface BegunCall extends Pick<ParsedRequest, 'model' | 'session' | 'cause'> {
  id: string
  organizationId: string
  instanceId: string
  provider: ModelProvider
  /** By the monotonic clock of this process. */
  beganAt: number
}

interface EndedCall extends BegunCall {
  outcome: CallOutcome
  usage: CountedUsage | null
  estimated: CallAmount | null
}

/**
 * Writes the calls of a relay. A call that ends is one row of `model_calls`. A longer open one has a row of
 * `open_model_calls` meanwhile, which needs no disk. One statement writes all calls of 20 ms, so that there are never
 * more statements than calls. After a kill -9 of the relay, `settleLostCalls` finds its open calls, and treats those
 * that ended in the last 20 ms or so as open ones. Only a call that also began within that time leaves no trace. A
 * crash of PostgreSQL loses no call of a living relay. A call that PostgreSQL refuses is lost, and no other one with it.
 */
export interface CallWriter {
  /** The call is open. Called again when more of its request is parsed. */
  begin(call: BegunCall): void
  /** The call has ended: its reported usage, and an estimate of the rest. */
  end(call: BegunCall, outcome: CallOutcome, usage: CountedUsage | null, estimated?: CallAmount | null): void
  /** The vendor has not accepted the call, so it does not count. */
  drop(call: BegunCall): void
  /** Writes the waiting calls, and gives up after `timeoutMs`. */
  close(timeoutMs: number): Promise<void>
}

const whoColumns = 'id, organization_id, instance_id, session, cause, provider, model'
const whoTypes =
  'id uuid, organization_id uuid, instance_id uuid, session text, cause text, provider text, model text, ' +
  'age_ms float8'
/** By the clock of the database: the clocks of relays may differ. */
const beganAt = "now() - age_ms * interval '1 ms'"
const usageColumns =
  'outcome, input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost, ' +
  'estimated_tokens, estimated_cost'
const usageTypes =
  'outcome text, input_tokens int, cache_read_tokens int, cache_write_tokens int, output_tokens int, ' +
  'reasoning_tokens int, cost numeric, estimated_tokens int, estimated_cost numeric'

// A call that was counted as lost, because its relay was delayed, is corrected by its end.
const writeQuery = `
  WITH gone AS (DELETE FROM open_model_calls WHERE id = ANY ($1::uuid[])),
  opened AS (
    INSERT INTO open_model_calls (${whoColumns}, began_at, process_id)
    SELECT ${whoColumns}, ${beganAt}, $2 FROM jsonb_to_recordset($3::jsonb) AS x (${whoTypes})
    ON CONFLICT (id) DO UPDATE SET session = excluded.session, cause = excluded.cause, model = excluded.model
  )
  INSERT INTO model_calls (${whoColumns}, began_at, end_user, ${usageColumns})
  SELECT ${whoColumns}, ${beganAt}, (
    SELECT end_user FROM session_end_users e WHERE e.instance_id = x.instance_id AND e.session = x.session
  ), ${usageColumns} FROM jsonb_to_recordset($4::jsonb) AS x (${whoTypes}, ${usageTypes})
  ON CONFLICT (id) DO UPDATE SET (${usageColumns}) = (SELECT ${usageColumns
    .split(', ')
    .map((name) => `excluded.${name}`)
    .join(', ')})`

const maxTextLength = 512
/** Removes characters that PostgreSQL refuses. */
export const storable = (text: string | null): string | null =>
  text === null ? null : text.slice(0, maxTextLength).replaceAll('\0', '').toWellFormed()

const whoOf = (call: BegunCall) => ({
  id: call.id,
  organization_id: call.organizationId,
  instance_id: call.instanceId,
  session: storable(call.session),
  cause: call.cause,
  provider: call.provider,
  model: storable(call.model),
  age_ms: performance.now() - call.beganAt,
})

const rowOf = ({ usage, estimated, outcome, ...call }: EndedCall) => ({
  ...whoOf(call),
  outcome,
  input_tokens: usage?.inputTokens,
  cache_read_tokens: usage?.cacheReadTokens,
  cache_write_tokens: usage?.cacheWriteTokens,
  output_tokens: usage?.outputTokens,
  reasoning_tokens: usage?.reasoningTokens,
  cost: usage?.cost,
  estimated_tokens: estimated?.tokens,
  estimated_cost: estimated?.cost,
})

/** `processId` is that of the relay in the table `processes`. */
export function createCallWriter(db: Db, processId: string, log: Logger): CallWriter {
  /** The open calls without a row, or with an outdated one. */
  const begun = new Map<string, BegunCall>()
  /** The ids of open calls that may have a row. */
  const opened = new Set<string>()
  const gone: string[] = []
  const ended: EndedCall[] = []
  const outage = logFirstAndRecovery(log, 'the calls of agents cannot be written', 'the calls of agents are written')
  let writing: Promise<void> | null = null
  let isClosing = false
  let isGivenUp = false
  /** Calls of the next statement: fewer while the refused one among them is searched for. */
  let size = batchSize
  const hasWaiting = () => begun.size + ended.length + gone.length > 0

  async function writeBatch(): Promise<void> {
    const opening = [...begun.values()].slice(0, size)
    const ending = ended.slice(0, size)
    const closed = gone.slice(0, 2 * batchSize)
    const values = [closed, processId, JSON.stringify(opening.map(whoOf)), JSON.stringify(ending.map(rowOf))]
    for (const { id } of opening) {
      begun.delete(id)
      opened.add(id)
    }
    try {
      await db.$client.query({ name: 'write_calls', text: writeQuery, values })
    } catch (error) {
      for (const call of opening) if (opened.has(call.id)) begun.set(call.id, call)
      throw error
    }
    ended.splice(0, ending.length)
    gone.splice(0, closed.length)
  }

  async function write(): Promise<void> {
    while (hasWaiting() && !isGivenUp) {
      if (!isClosing && size === batchSize) await sleep(gatherMs)
      try {
        await writeBatch()
        size = Math.min(2 * size, batchSize)
        outage.recovered()
      } catch (error) {
        const sent = Math.min(size, Math.max(begun.size, ended.length))
        const isRefused = isOfData(error)
        if (isRefused && sent > 1) size = Math.floor(sent / 2)
        else outage.failed(error)
        if (isRefused && sent === 1) usageLost.inc(ended.splice(0, 1).length)
        if (!isRefused) await sleep(retryMs, undefined, { ref: !isClosing })
      }
    }
  }

  function schedule(): void {
    writing ??= write().finally(() => {
      writing = null
      if (hasWaiting() && !isGivenUp) schedule()
    })
  }

  function close(call: BegunCall): void {
    begun.delete(call.id)
    if (opened.delete(call.id)) gone.push(call.id)
    schedule()
  }

  return {
    begin(call) {
      begun.set(call.id, call)
      schedule()
    },
    end(call, outcome, usage, estimated = null) {
      if (ended.length >= maxWaiting) usageLost.inc()
      else ended.push({ ...call, outcome, usage, estimated })
      close(call)
    },
    drop: close,
    async close(timeoutMs) {
      isClosing = true
      await Promise.race([writing, sleep(timeoutMs, undefined, { ref: false })])
      isGivenUp = true
    },
  }
}
