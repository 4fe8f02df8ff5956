import DataLoader from 'dataloader'
import { LRUCache } from 'lru-cache'
import type { Db } from '../database/client.ts'
import type { Instance } from '../database/schema.ts'
import type { Endpoint } from '../openclaw/gateway.ts'
import { AppError } from '../platform/errors.ts'
import { isId } from '../platform/ids.ts'
import type { Vault } from '../platform/secrets.ts'
import { texts } from '../platform/texts.ts'
import { publicStatus } from './status.ts'
import { openToken, terminatedReadableDays } from './store.ts'

/** The columns that every poll and every turn reads: few, because there are many of those. */
export type InstanceHead = Pick<
  Instance,
  | 'id'
  | 'organizationId'
  | 'desiredState'
  | 'generation'
  | 'observedGeneration'
  | 'readyAt'
  | 'step'
  | 'endpoint'
  | 'sealedToken'
  | 'modelProvider'
>

/** Finds the head of an organization's instance. Throws not_found for a missing, malformed or foreign id alike. */
export type FindHead = (organizationId: string, id: string) => Promise<InstanceHead>

/** One query takes this many at most; the next one follows. */
const largestBatch = 500
/** While so many queries are out, those who ask meanwhile share the next one: the busier, the fewer queries a request. */
const mostQueriesAtOnce = 2
const rememberedTokens = 10_000

const text = `
  SELECT i.id, i.organization_id AS "organizationId", i.desired_state AS "desiredState", i.generation, i.observed_generation AS "observedGeneration",
         i.ready_at AS "readyAt", i.step, i.endpoint, i.sealed_token AS "sealedToken", i.model_provider AS "modelProvider"
  FROM unnest($1::uuid[], $2::uuid[]) AS asked (id, organization_id)
  JOIN instances i ON i.id = asked.id AND i.organization_id = asked.organization_id
  WHERE i.terminated_at IS NULL OR i.terminated_at > now() - make_interval(days => ${terminatedReadableDays})`

const keyOf = ({ id, organizationId }: { id: string; organizationId: string }) => `${organizationId}.${id}`

/**
 * Looks heads up in batches: whoever asks in the same turn of the event loop, or while the database is busy with
 * others, shares a query that starts after the asking, so nobody is told an older truth.
 */
export function findHeadIn(db: Db): FindHead {
  let queriesOut = 0
  const waiting: (() => void)[] = []
  const schedule = (send: () => void) => {
    if (queriesOut < mostQueriesAtOnce) setImmediate(send)
    else waiting.push(send)
  }
  const loader = new DataLoader<{ id: string; organizationId: string }, InstanceHead | null>(
    async (asked) => {
      queriesOut += 1
      try {
        const ids = asked.map(({ id }) => id)
        const organizationIds = asked.map(({ organizationId }) => organizationId)
        const { rows } = await db.$client.query<InstanceHead>({
          name: 'find_heads',
          text,
          values: [ids, organizationIds],
        })
        // By both: two organizations may ask for one id in the same batch, and only its owner may have it.
        const found = new Map(rows.map((row) => [keyOf(row), row]))
        return asked.map((one) => found.get(keyOf(one)) ?? null)
      } finally {
        queriesOut -= 1
        waiting.shift()?.()
      }
    },
    { cache: false, maxBatchSize: largestBatch, batchScheduleFn: schedule },
  )
  return async (organizationId, id) => {
    const head = isId(id) ? await loader.load({ id: id.toLowerCase(), organizationId }) : null
    if (!head) throw new AppError('not_found', texts.instanceNotFound)
    return head
  }
}

/** Where a running instance's gateway is, and its token. Throws not_found, or conflict naming the status. */
export function findGatewayIn(vault: Vault, findHead: FindHead) {
  // Opening a sealed token costs more than all else here, and a token never changes under its seal.
  const tokens = new LRUCache<string, string>({ max: rememberedTokens })
  return async (organizationId: string, id: string) => {
    const head = await findHead(organizationId, id)
    const status = publicStatus(head)
    if (status !== 'running') throw new AppError('conflict', texts.notRunning(status))
    let token = tokens.get(head.sealedToken)
    if (token === undefined) {
      token = openToken(vault, head)
      tokens.set(head.sealedToken, token)
    }
    return { endpoint: head.endpoint as Endpoint, token, provider: head.modelProvider }
  }
}
