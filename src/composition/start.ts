import { type Billing, createBilling } from '#api/subscription/stripe.ts'
import { createBacklogMetrics } from '#lifecycle/queue/backlog.ts'
import { nameOf } from '#lifecycle/queue/shards.ts'
import { addModelsFile } from '#openclaw/models/models-file.ts'
import { defaultRelease, knownReleases } from '#openclaw/releases.ts'
import { prepareDataFolder } from '#platform/data-folder.ts'
import { newId } from '#platform/ids.ts'
import { buildInfo, type MetricSource, serveMetrics } from '#platform/metrics.ts'
import { commit, version } from '#platform/version.ts'
import type { Config } from '#settings/config.ts'
import { publicOrigin } from '#settings/exposure.ts'
import { stopAgentsOnInterrupt } from './agents.ts'
import { openDatabase } from './database.ts'
import { openHeartbeat } from './heartbeat.ts'
import { withRelayPort } from './installation.ts'
import { hostDiskOf, openRegions } from './regions.ts'
import { type CreateDriver, createDriver, openSandboxes } from './sandboxes.ts'
import type { Startup } from './startup.ts'
import { openVault } from './vault.ts'
import { welcome } from './welcome.ts'

/** Parses a setting such as `9464` or `0.0.0.0:9464`. */
function addressOf(setting: string): { host: string; port: number } {
  const at = setting.lastIndexOf(':')
  const host = at < 0 ? '127.0.0.1' : setting.slice(0, at).replace(/^\[|\]$/g, '')
  return { host, port: Number(setting.slice(at + 1)) }
}

/** Serves the metrics of this process and of `sources`, if METRICS_PORT is set. */
async function openMetrics({ config, log, drain }: Startup, sources: readonly MetricSource[]): Promise<void> {
  if (config.METRICS_PORT === undefined) return
  buildInfo.set({ version, commit, release: defaultRelease }, 1)
  const { port, close } = await serveMetrics(addressOf(config.METRICS_PORT), sources, log)
  drain.add('metrics', close)
  log.info({ port }, 'metrics are served at /metrics')
}

/** Opens billing; null without the settings of Stripe. Both are set or none. */
async function openBilling(config: Config, publicUrl: () => string): Promise<Billing | null> {
  const { STRIPE_SECRET_KEY, STRIPE_WEBHOOK_SECRET } = config
  if (!STRIPE_SECRET_KEY || !STRIPE_WEBHOOK_SECRET) return null
  return createBilling({
    secretKey: STRIPE_SECRET_KEY,
    webhookSecret: STRIPE_WEBHOOK_SECRET,
    returnUrl: publicUrl,
  })
}

/**
 * Opens the parts of the role; each one's function adds its end to the drain. Resolves once the process serves, works
 * or has migrated. After a failure the drain closes the opened parts; the caller runs it. Throws StartupError with a
 * message for the operator.
 */
export async function start(given: Startup, create: CreateDriver = createDriver): Promise<void> {
  const { role, config, log, drain } = given
  // A migration needs no models, and docker-compose gives it no file of them.
  if (config.CHOWDER_MODELS_FILE !== undefined && role !== 'migrate') {
    addModelsFile(config.CHOWDER_MODELS_FILE, knownReleases())
  }
  await prepareDataFolder(given.dataDir)
  const { db, connection } = await openDatabase(given)
  if (role === 'migrate') return log.info('the schema is up to date')
  drain.signal.throwIfAborted()
  const startup = { ...given, config: await withRelayPort(config, db) }
  const vault = await openVault(startup, db)
  const regions = await openRegions({ ...startup, db }, openSandboxes(create))
  const processId = newId()
  if (role === 'relay') {
    await openHeartbeat(startup, db, processId, () => [])
    const { openEgress } = await import('./egress.ts')
    const { openRelay } = await import('./relay.ts')
    const egress = await openEgress(startup, { db, vault, regions })
    await openRelay(startup, { db, vault, regions, processId, egress })
    await openMetrics(startup, [])
    return log.info('Chowder is running as relay')
  }
  if (role === 'all') stopAgentsOnInterrupt(startup, db, regions)
  const { openQueue } = await import('./queue.ts')
  const queue = await openQueue(startup, connection)
  let publicUrl = ''
  const billing = await openBilling(config, () => publicUrl)
  const hostDisk = hostDiskOf(given.dataDir, regions.all())
  const served = () => (role === 'api' ? [] : regions.served().map(nameOf))
  const { alive, areWorkersMissing } = await openHeartbeat(startup, db, processId, served)
  const parts = { db, vault, regions, queue, billing, hostDisk, processId, alive, log }

  // Loaded late, so that a process does not load the code of other roles. The relay comes first: turns and starting
  // gateways call it.
  if (role !== 'api' && config.RELAY_ROLE === 'worker') {
    const { openEgress } = await import('./egress.ts')
    const { openRelay } = await import('./relay.ts')
    const egress = await openEgress(startup, { db, vault, regions })
    await openRelay(startup, { db, vault, regions, processId, egress })
  }
  if (role !== 'worker') {
    const { openApi } = await import('./api.ts')
    publicUrl = await openApi(startup, { ...parts, areWorkersMissing, publicUrl: () => publicUrl })
  }
  if (role !== 'api') {
    const { openWorker } = await import('./worker.ts')
    await openWorker(startup, { ...parts, publicUrl: () => publicUrl || (publicOrigin(config) ?? '') })
  }
  // Last: an answer means that the process does its work.
  await openMetrics(startup, role === 'api' ? [] : [createBacklogMetrics({ db, queue })])
  log.info({ url: publicUrl || undefined }, `Chowder is running as ${role}`)
  if (role === 'all') process.stderr.write(await welcome(startup, { db, url: publicUrl, regions }))
}
