import { LRUCache } from 'lru-cache'
import { batched } from '#database/batched.ts'
import type { Db } from '#database/client.ts'
import type { Instance, ModelProvider } from '#database/schema.ts'
import type { Endpoint } from '#openclaw/gateway.ts'
import { defaultModel } from '#openclaw/releases.ts'
import { AppError } from '#platform/errors.ts'
import { isId } from '#platform/ids.ts'
import type { Vault } from '#platform/secrets.ts'
import { texts } from '#platform/texts.ts'
import { getInstance, ownModel, terminatedReadableDays, unsealToken } from './row.ts'
import { publicStatus } from './status.ts'

/** The columns that every poll and every turn reads: few, because there are many of those. */
export type InstanceSummary = Pick<
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
  | 'openclawVersion'
>

interface FoundSummary extends InstanceSummary {
  /** Whether its caller configured OpenClaw. */
  hasConfig: boolean
}

/** Finds the head of an organization's instance. Throws not_found for a missing, malformed or foreign id alike. */
export type FindSummary = (organizationId: string, id: string) => Promise<FoundSummary>

/** While so many queries are out, those who ask meanwhile share the next one. */
const maxQueriesAtOnce = 2
const rememberedGateways = 10_000

const text = `
  SELECT i.id, i.organization_id AS "organizationId", i.desired_state AS "desiredState", i.generation, i.observed_generation AS "observedGeneration",
         i.ready_at AS "readyAt", i.step, i.endpoint, i.sealed_token AS "sealedToken", i.model_provider AS "modelProvider",
         i.openclaw_version AS "openclawVersion", i.sealed_config IS NOT NULL AS "hasConfig"
  FROM unnest($1::uuid[], $2::uuid[]) AS asked (id, organization_id)
  JOIN instances i ON i.id = asked.id AND i.organization_id = asked.organization_id
  WHERE i.terminated_at IS NULL OR i.terminated_at > now() - make_interval(days => ${terminatedReadableDays})`

const keyOf = ({ id, organizationId }: { id: string; organizationId: string }) => `${organizationId}.${id}`

/** Looks heads up in batches. */
export function createFindSummary(db: Db): FindSummary {
  const find = batched(maxQueriesAtOnce, async (asked: readonly { id: string; organizationId: string }[]) => {
    const ids = asked.map(({ id }) => id)
    const organizationIds = asked.map(({ organizationId }) => organizationId)
    const { rows } = await db.$client.query<FoundSummary>({ name: 'find_heads', text, values: [ids, organizationIds] })
    // By both: two organizations may ask for one id in the same batch, and only its owner may have it.
    const found = new Map(rows.map((row) => [keyOf(row), row]))
    return asked.map((one) => found.get(keyOf(one)) ?? null)
  })
  return async (organizationId, id) => {
    const head = isId(id) ? await find({ id: id.toLowerCase(), organizationId }) : null
    if (!head) throw new AppError('not_found', texts.instanceNotFound)
    return head
  }
}

export interface RunningGateway {
  endpoint: Endpoint
  token: string
  provider: ModelProvider
  /** The release of OpenClaw that it is, `v1`. */
  release: string
  /** The model that `openclaw` stands for, without its provider's name. */
  model: string
}

export interface FindGateway {
  /**
   * Where a running instance's gateway is, and its token. Throws not_found, or conflict naming the status. A process
   * that did not record the change itself may take an instance for running for 100 ms longer.
   */
  (organizationId: string, id: string): Promise<RunningGateway>
  /** To be called once an intent was recorded and before it is answered: messages get their 409 from then on. */
  forget(organizationId: string, id: string): void
}

/** A burst of turns asks the database once; short beside a turn, which takes a third of a second at the least. */
const gatewayRememberedMs = 100

export function createFindGateway(db: Db, vault: Vault, findSummary: FindSummary): FindGateway {
  const gateways = new LRUCache<string, RunningGateway>({
    max: rememberedGateways,
    ttl: gatewayRememberedMs,
  })
  let forgotten = 0

  async function modelOf({ id, organizationId, openclawVersion, modelProvider, hasConfig }: FoundSummary) {
    if (!hasConfig) return defaultModel(openclawVersion, modelProvider)
    return ownModel(vault, await getInstance(db, organizationId, id))
  }

  const find = async (organizationId: string, id: string) => {
    const key = keyOf({ organizationId, id: id.toLowerCase() })
    const known = gateways.get(key)
    if (known) return known
    const before = forgotten
    const head = await findSummary(organizationId, id)
    const status = publicStatus(head)
    if (status !== 'running') throw new AppError('conflict', texts.notRunning(status))
    const gateway = {
      endpoint: head.endpoint as Endpoint,
      token: unsealToken(vault, head),
      provider: head.modelProvider,
      release: head.openclawVersion,
      model: await modelOf(head),
    }
    if (before === forgotten) gateways.set(key, gateway) // else it may be what was just forgotten
    return gateway
  }
  return Object.assign(find, {
    forget: (organizationId: string, id: string) => {
      forgotten += 1
      gateways.delete(keyOf({ organizationId, id: id.toLowerCase() }))
    },
  })
}
