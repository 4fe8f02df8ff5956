import { LRUCache } from 'lru-cache'
import { batched } from '#database/batched.ts'
import type { Db } from '#database/client.ts'
import type { Instance, ModelProvider } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { defaultModel } from '#openclaw/models/models.ts'
import { isId } from '#platform/ids.ts'
import type { Vault } from '#platform/secrets.ts'
import type { Endpoint } from '#sandbox/driver.ts'
import { getInstance, instanceNotFound, ownModel, terminatedReadableDays, unsealToken } from './row.ts'
import { isSleeping, publicStatus, requireRunning } from './status.ts'
import { readUntil, settleTimeoutMs } from './wait.ts'

/** The columns for a poll of the status and for a turn: few, because both are frequent. */
export type InstanceSummary = Pick<
  Instance,
  | 'id'
  | 'organizationId'
  | 'desiredState'
  | 'generation'
  | 'observedGeneration'
  | 'restartGeneration'
  | 'readyAt'
  | 'busy'
  | 'step'
  | 'stoppedFor'
  | 'idleTimeoutSeconds'
  | 'wakeOnRequest'
  | 'endpoint'
  | 'sealedToken'
  | 'modelProvider'
  | 'openclawVersion'
  | 'unlistedModels'
  | 'approvals'
>

interface FoundSummary extends InstanceSummary {
  /** Whether the provider's key was just changed, and a worker has yet to give it to the gateway. */
  awaitsKey: boolean
  /** Whether the customer sets a model, or overrides OpenClaw's configuration, which may contain one. */
  hasConfig: boolean
}

/** Finds the summary of an organization's instance. Throws not_found for a missing, malformed or foreign id alike. */
export type FindSummary = (organizationId: string, id: string) => Promise<FoundSummary>

/** While this many queries run, requests wait and share the next one. */
const maxConcurrentQueries = 2

const findSummaries = `
  SELECT i.id, i.organization_id AS "organizationId", i.desired_state AS "desiredState", i.generation,
         i.observed_generation AS "observedGeneration", i.restart_generation AS "restartGeneration",
         i.ready_at AS "readyAt", i.busy, i.step, i.endpoint,
         i.stopped_for AS "stoppedFor", i.idle_timeout_seconds AS "idleTimeoutSeconds",
         i.wake_on_request AS "wakeOnRequest",
         i.sealed_token AS "sealedToken", i.model_provider AS "modelProvider", i.openclaw_version AS "openclawVersion",
         i.unlisted_models AS "unlistedModels", i.approvals,
         i.sealed_config IS NOT NULL OR i.model IS NOT NULL AS "hasConfig",
         i.ready_at IS NOT NULL AND i.generation > i.observed_generation
           AND coalesce(k.updated_at > now() - interval '15 s', false) AS "awaitsKey"
  FROM unnest($1::uuid[], $2::uuid[]) AS wanted (id, organization_id)
  JOIN instances i ON i.id = wanted.id AND i.organization_id = wanted.organization_id
  LEFT JOIN provider_keys k ON k.organization_id = i.organization_id AND k.provider = i.model_provider
  WHERE i.terminated_at IS NULL OR i.terminated_at > now() - make_interval(days => ${terminatedReadableDays})`

interface Key {
  id: string
  organizationId: string
}
const keyText = ({ id, organizationId }: Key) => `${organizationId}.${id}`

/** Finds summaries in batches: requests that come together share a query. */
export function createFindSummary(db: Db): FindSummary {
  const find = batched(maxConcurrentQueries, async (keys: readonly Key[]) => {
    const values = [keys.map(({ id }) => id), keys.map(({ organizationId }) => organizationId)]
    const { rows } = await db.$client.query<FoundSummary>({ name: 'find_summaries', text: findSummaries, values })
    // Keyed by organization and id: two organizations may ask for one id in the same batch, and only its owner gets it.
    const found = new Map(rows.map((row) => [keyText(row), row]))
    return keys.map((key) => found.get(keyText(key)) ?? null)
  })
  return async (organizationId, id) => {
    const summary = isId(id) ? await find({ id, organizationId }) : null
    if (!summary) throw instanceNotFound(id)
    return summary
  }
}

export interface RunningGateway {
  organizationId: string
  endpoint: Endpoint
  token: string
  provider: ModelProvider
  /** The release of OpenClaw, such as `v1`. */
  release: string
  /** The model that `openclaw` maps to, without the provider's name. */
  model: string
  /** Models of its configuration that no table lists. */
  unlistedModels: readonly string[]
  /** Whether the agent asks before it runs a command. */
  asks: boolean
}

/** Starts a sleeping instance. Throws AppError when it may not start. */
export type Wake = (organizationId: string, id: string) => Promise<void>

interface FindOptions {
  /** Called before a sleeping instance is woken; throws to let it sleep. */
  beforeWake?(): Promise<unknown>
  /** False: returns the gateway of an instance that is being woken at once, although it takes no request yet. */
  waits?: boolean
}

/** The gateways of running instances, cached for 100 ms. */
export interface RunningGateways {
  /**
   * Returns a running instance's gateway. Waits up to 10 s while a worker gives it a changed key of the provider. Wakes
   * a sleeping instance that requests may wake, and waits up to 60 s for it. Throws not_found, conflict with the status
   * of an instance that does not run, unavailable for one that takes longer to wake, and the errors of `wake`. After a
   * stop that another process recorded, this may still return the gateway for 100 ms.
   */
  find(organizationId: string, id: string, options?: FindOptions): Promise<RunningGateway>
  /** Call it after an intent was recorded and before the response to it: messages are refused from then on. */
  forget(organizationId: string, id: string): void
}

export type FindGateway = RunningGateways['find']

/** A burst of turns makes one query. Short compared to a turn, which takes at least a third of a second. */
const cacheMs = 100
const maxCached = 10_000
/** A worker gives a running gateway a changed key within about 2 s. */
const waitForKeyMs = 10_000
const retryAfterSeconds = 5

/** Without `wake` a sleeping instance is a stopped one. */
export function createRunningGateways(db: Db, vault: Vault, findSummary: FindSummary, wake?: Wake): RunningGateways {
  const gateways = new LRUCache<string, RunningGateway>({ max: maxCached, ttl: cacheMs })
  let forgets = 0

  async function modelOf({ id, organizationId, openclawVersion, modelProvider, hasConfig }: FoundSummary) {
    if (!hasConfig) return defaultModel(openclawVersion, modelProvider)
    return ownModel(vault, await getInstance(db, organizationId, id))
  }

  const gatewayOf = async (summary: FoundSummary): Promise<RunningGateway> => ({
    organizationId: summary.organizationId,
    endpoint: summary.endpoint as Endpoint,
    token: unsealToken(vault, summary),
    provider: summary.modelProvider,
    release: summary.openclawVersion,
    model: await modelOf(summary),
    unlistedModels: summary.unlistedModels,
    asks: summary.approvals === 'ask',
  })

  return {
    async find(organizationId, id, { beforeWake, waits = true } = {}) {
      const key = keyText({ organizationId, id })
      const cached = gateways.get(key)
      if (cached) return cached
      const forgetsBefore = forgets
      const read = () => findSummary(organizationId, id)
      const within = (waitMs: number) => ({ organizationId, waitMs, signal: AbortSignal.timeout(waitMs) })
      let summary = await read()
      // Requests also wait for an instance that something else has woken, or that is created.
      let sleeps = wake !== undefined && summary.wakeOnRequest && summary.idleTimeoutSeconds !== null
      const isWaking = (latest: InstanceSummary) => sleeps && publicStatus(latest) === 'provisioning'
      if (wake && isSleeping(summary) && summary.wakeOnRequest) {
        await beforeWake?.()
        await wake(organizationId, id)
        sleeps = true
        summary = await read()
      }
      if (isWaking(summary)) {
        if (!waits) return await gatewayOf(summary)
        summary = await readUntil(summary, (latest) => !isWaking(latest), read, within(settleTimeoutMs))
        if (isWaking(summary)) throw new AppError('unavailable', texts.stillWaking, { retryAfterSeconds })
      }
      summary = await readUntil(summary, ({ awaitsKey }) => !awaitsKey, read, within(waitForKeyMs))
      requireRunning(summary)
      const gateway = await gatewayOf(summary)
      // A gateway that was forgotten during the read must not be cached again.
      if (forgetsBefore === forgets) gateways.set(key, gateway)
      return gateway
    },
    forget(organizationId, id) {
      forgets += 1
      gateways.delete(keyText({ organizationId, id }))
    },
  }
}
