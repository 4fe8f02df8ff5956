import { LRUCache } from 'lru-cache'
import pTimeout from 'p-timeout'
import { createRequireStart } from '#api/instances/action-routes.ts'
import { createCallers } from '#api/keys/callers.ts'
import { createFindTokenCaller } from '#api/keys/client-tokens.ts'
import { findSignupToken } from '#api/organization/signup-token.ts'
import { type AppDeps, buildApp } from '#app.ts'
import type { Db } from '#database/client.ts'
import { aliveProcesses, isWorker } from '#database/processes.ts'
import { inFlightLimits } from '#http/in-flight.ts'
import { connectLimits, type RateLimits, rateLimits } from '#http/rate-limit.ts'
import { createFindSummary, createRunningGateways } from '#instances/find.ts'
import { createAskGateway } from '#instances/gateway/ask.ts'
import { createDeclareModel } from '#instances/gateway/declare-model.ts'
import type { Regions } from '#instances/regions.ts'
import { wakeInstance } from '#instances/sleep.ts'
import type { ReconcileQueue } from '#lifecycle/queue/queue.ts'
import type { HostDisk } from '#platform/host-disk.ts'
import { explainListening } from '#platform/listen-fault.ts'
import type { Config } from '#settings/config.ts'
import { allowedHosts, corsOrigins, publicOrigin, signupMode } from '#settings/exposure.ts'
import { defaultTier, type SharedSettings, sharedSettings } from './settings.ts'
import type { Startup } from './startup.ts'

const readinessTimeoutMs = 1000
/** Caches the readiness for this time, so that any number of requests costs one check. */
const readinessLastsMs = 500
/** Time for open requests other than turns to end, after the last turn, before their connections are closed. */
const openRequestsMs = 5000

export interface ApiParts
  extends Pick<AppDeps, 'hostDisk' | 'db' | 'processId' | 'vault' | 'log' | 'billing' | 'isDraining'> {
  queue: Pick<ReconcileQueue, 'enqueue' | 'ping'>
  regions: Regions
  /** Whether no worker is alive. */
  areWorkersMissing(): boolean
  /** The URL for clients. Called for each answer, because a port that the system chooses is known late. */
  publicUrl(): string
}

export interface ApiSettings
  extends SharedSettings,
    Pick<
      AppDeps,
      | 'defaultTier'
      | 'filesMaxBytes'
      | 'idleTimeoutSeconds'
      | 'inFlightLimits'
      | 'limits'
      | 'origins'
      | 'signup'
      | 'trustedProxies'
    >,
    Partial<Pick<AppDeps, 'bodyTimes' | 'turnTimeouts'>> {}

const filesMaxBytes = 2 * 1024 ** 3

export const apiSettings = (config: Config, redis: RateLimits['redis'] = null): ApiSettings => ({
  ...sharedSettings(config),
  defaultTier: defaultTier(config),
  filesMaxBytes,
  idleTimeoutSeconds: config.IDLE_TIMEOUT_SECONDS ?? null,
  limits: rateLimits(config.RATE_LIMIT_PER_MINUTE, redis),
  inFlightLimits,
  origins: { hosts: allowedHosts(config), own: publicOrigin(config), foreign: corsOrigins(config) },
  signup: signupMode(config),
  trustedProxies: config.TRUST_PROXY,
})

/** Builds the whole API. It does not listen yet, and calls none of its parts before a request comes. */
export async function createApi(parts: ApiParts, settings: ApiSettings) {
  const { db, vault, queue, regions, hostDisk, log } = parts
  const callers = createCallers(db, log)
  const findSummary = createFindSummary(db)
  const requireStart = createRequireStart({ ...parts, ...settings, findSummary })
  const gateways = createRunningGateways(db, vault, findSummary, async (organizationId, id) => {
    await requireStart(organizationId, id)
    await wakeInstance(parts, organizationId, id)
  })
  const answers = new LRUCache<'readiness', Awaited<ReturnType<typeof readiness>>>({
    max: 1,
    ttl: readinessLastsMs,
    fetchMethod: () => readiness(db, queue, hostDisk),
  })
  const deps: AppDeps = {
    ...parts,
    ...settings,
    isolation: () => isolationOf(regions),
    hasTwoRooms: () => regions.all().some(({ sandboxes }) => sandboxes.hasTwoRooms),
    isOneOrganization: () => regions.all().some(({ sandboxes }) => sandboxes.isForOneOrganization),
    hasBilling: parts.billing !== null,
    findCaller: callers.find,
    findTokenCaller: createFindTokenCaller(vault, callers),
    forgetCaller: callers.forget,
    findSummary,
    findGateway: gateways.find,
    askGateway: createAskGateway(gateways.find, parts),
    forgetGateway: gateways.forget,
    declareModel: createDeclareModel({ ...parts, ...settings }, gateways.forget),
    readiness: () => answers.forceFetch('readiness'),
    closing: { turnsMs: () => turnsMs, onTurnsEnded: () => turnsEnded.resolve() },
  }
  let turnsMs = 0
  const turnsEnded = Promise.withResolvers<void>()
  const app = await buildApp(deps)
  return {
    app,
    deps,
    /**
     * Stops listening. Gives running turns `drainMs` to end, then ends them and other open requests, and stores the
     * last uses of keys.
     */
    async close(drainMs = 0): Promise<void> {
      turnsMs = drainMs
      let cutOff: NodeJS.Timeout | undefined
      void turnsEnded.promise.then(() => {
        cutOff = setTimeout(() => app.server.closeAllConnections(), openRequestsMs)
      })
      await app.close().finally(() => clearTimeout(cutOff))
      await callers.close()
    },
  }
}

/** How agents are isolated: a sentence, or one for each region. */
function isolationOf(regions: Regions): string {
  const all = regions.all()
  if (all.length === 1) return regions.default().sandboxes.isolation
  return all.map(({ region, sandboxes }) => `${region}: ${sandboxes.isolation}`).join(' ')
}

/** Opens the API and listens. Returns its public URL. Throws StartupError when it cannot listen there. */
export async function openApi({ config, drain }: Startup, parts: Omit<ApiParts, 'isDraining'>): Promise<string> {
  const redis = config.REDIS_URL ? connectLimits(config.REDIS_URL) : null
  drain.add('api', () => redis?.disconnect())
  const settings = apiSettings(config, redis)
  if (settings.signup === 'token') {
    await findSignupToken(parts.db, parts.vault)
    parts.log.info('sign-up requires the token that `npm run admin -- signup-token` prints')
  }
  // True from the signal on, also while the worker of this process drains, so that a balancer notices early.
  const isDraining = () => drain.signal.aborted
  const { app, close } = await createApi({ ...parts, isDraining }, settings)
  drain.add('api', async ({ interrupted }) => {
    await close(interrupted ? undefined : config.DRAIN_SECONDS * 1000)
  })
  const { HOST: host, PORT: port } = config
  const listening = await app.listen({ host, port }).catch((error: unknown) => {
    throw explainListening(error, { host, port, hostVariable: 'HOST', portVariable: 'PORT' })
  })
  return (config.CHOWDER_PUBLIC_URL ?? listening).replace(/\/+$/, '')
}

async function readiness(db: Db, queue: ApiParts['queue'], hostDisk: HostDisk) {
  const counted = pTimeout(aliveProcesses(db), { milliseconds: readinessTimeoutMs }).catch(() => null)
  const [processes, isQueueReady] = await Promise.all([counted, queue.ping(AbortSignal.timeout(readinessTimeoutMs))])
  const hasRoom = await hostDisk.read().then(
    ({ isLow }) => !isLow,
    () => true,
  ) // a failed read is not a full disk
  return {
    database: processes !== null,
    queue: isQueueReady,
    disk: hasRoom,
    workers: processes?.filter(isWorker).length ?? null,
  }
}
