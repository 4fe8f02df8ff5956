import type { Db } from '#database/client.ts'
import { storeOnce } from '#database/installation.ts'
import { StartupError } from '#errors/startup-error.ts'
import { countOrganizations } from '#instances/warm-pool.ts'
import { linkCompileCache } from '#openclaw/release/compile-cache.ts'
import { installChannelPlugin, installRelease } from '#openclaw/release/install.ts'
import { releaseFolder, releasesFolder } from '#openclaw/releases.ts'
import { hostId, nodeBinary } from '#platform/data-folder.ts'
import type { Logger } from '#platform/log.ts'
import type { DockerDriverOptions } from '#sandbox/docker/driver.ts'
import type { SandboxDriver } from '#sandbox/driver.ts'
import type { LocalDriver } from '#sandbox/local/driver.ts'
import { measureDriver } from '#sandbox/measured.ts'
import type { Config } from '#settings/config.ts'
import { isOnlyLocal } from '#settings/exposure.ts'
import { dockerSettings } from './docker-settings.ts'
import { installationId } from './installation.ts'
import { kubernetesSettings } from './kubernetes-settings.ts'

/** A driver, with the extra methods of drivers whose agents are processes of this host. */
export type AnyDriver = SandboxDriver & Partial<Pick<LocalDriver, 'stopAll' | 'orphans' | 'serveJails'>>

export interface DriverParts {
  /** The name of the driver's region. */
  region: string
  config: Config
  dataDir: string
  /** The folder of local sandboxes. */
  storage: string
  /** Holds the id of the installation that owns the sandboxes. */
  db: Db
  log: Logger
}

export type CreateDriver = (parts: DriverParts) => Promise<AnyDriver>

/** Creates the Docker driver, and loads its code. */
export async function createDocker(options: DockerDriverOptions): Promise<SandboxDriver> {
  const { createDockerDriver } = await import('#sandbox/docker/driver.ts')
  return createDockerDriver(options)
}

/** Creates the driver of SANDBOX_DRIVER, and loads only its code. It changes no sandbox before a call. */
export async function createDriver({ config, dataDir, storage, db, log }: DriverParts): Promise<AnyDriver> {
  if (config.SANDBOX_DRIVER === 'docker') {
    const installation = await installationId(db)
    return createDocker({ ...(await dockerSettings(config)), installation, log })
  }
  if (config.SANDBOX_DRIVER === 'kubernetes') {
    const { createKubernetesDriver } = await import('#sandbox/kubernetes/driver.ts')
    const installation = await installationId(db)
    return createKubernetesDriver({ ...(await kubernetesSettings(config, dataDir)), installation, log })
  }
  const { createLocalDriver } = await import('#sandbox/local/driver.ts')
  const node = await nodeBinary(dataDir)
  const jail = await localJail(config, { dataDir, storage }, node)
  return createLocalDriver({
    dataDir: storage,
    numbersDir: dataDir,
    node,
    ...jail,
    acceptsOneUser: config.LOCAL_ISOLATION !== 'auto',
    installRelease: (release, progress, signal) => installRelease({ dataDir, release, progress, signal }),
    installChannelPlugin: (release, channel, progress, signal) =>
      installChannelPlugin({ dataDir, release, channel, progress, signal }),
    releaseFolder: (release) => releaseFolder(dataDir, release),
    linkCompileCache,
    log,
  })
}

/** The jail of local agents, or the reason why they have none. Throws StartupError if they must have one. */
async function localJail(config: Config, { dataDir, storage }: { dataDir: string; storage: string }, node: string) {
  const { createJail, gatewayPort, jailFault, proxyPort } = await import('#sandbox/local/jail.ts')
  const { agentUids } = await import('#sandbox/local/records.ts')
  const { waysOutFolder } = await import('#sandbox/local/way-out.ts')
  const waysOut = [
    { port: config.RELAY_PORT, service: 'relay' },
    { port: proxyPort, service: 'egress' },
  ]
  const jail = createJail({ releases: releasesFolder(dataDir), node, waysOut, waysOutFolder: waysOutFolder(storage) })
  const uid = process.getuid?.() === 0 ? agentUids.first : null
  const fault = async () => {
    if (config.LOCAL_ISOLATION === 'none') return 'LOCAL_ISOLATION is none'
    if ([gatewayPort, proxyPort].includes(config.RELAY_PORT)) return 'RELAY_PORT has another use in a jail'
    if (config.RELAY_URL !== undefined) return 'RELAY_URL names a relay that a jail does not reach'
    return jailFault(jail, storage, uid)
  }
  const noJail = await fault()
  if (noJail !== null && config.LOCAL_ISOLATION === 'jail') {
    throw new StartupError(`LOCAL_ISOLATION is jail, and agents cannot be put into jails here: ${noJail}.`)
  }
  return { jail, noJail }
}

/**
 * Returns a function that opens a driver and measures its calls. It throws StartupError when its agents are processes
 * of one host, and this database's agents run on another one.
 */
export const openSandboxes =
  (create: CreateDriver): CreateDriver =>
  async (parts) => {
    const { region, config, dataDir, storage, db } = parts
    const sandboxes = measureDriver(await create(parts), region)
    if (sandboxes.stopAll) await claimHost(db, storage, dataDir)
    if (sandboxes.isExposed) await requirePrivate(config, db, sandboxes)
    return sandboxes
  }

/** Throws StartupError if agents without isolation would belong to anyone but the operator. */
async function requirePrivate(config: Config, db: Db, { isolation }: AnyDriver): Promise<void> {
  const wayOut =
    `${isolation} Let this machine build jails, run Chowder as root, or use SANDBOX_DRIVER=docker. ` +
    'LOCAL_ISOLATION=none starts it all the same.'
  if (!isOnlyLocal(config)) {
    throw new StartupError(`Others than this machine reach the API, by HOST, CHOWDER_PUBLIC_URL or a proxy. ${wayOut}`)
  }
  if ((await countOrganizations(db)) > 1) throw new StartupError(`There is more than one organization. ${wayOut}`)
}

async function claimHost(db: Db, storage: string, dataDir: string): Promise<void> {
  const own = await hostId(storage)
  const known = await storeOnce(db, storage === dataDir ? 'local-host-id' : `local-host-id${storage}`, own)
  if (known === own) return
  throw new StartupError(
    "SANDBOX_DRIVER=local is for one host, and this database's agents are on another (or CHOWDER_DATA_DIR is not theirs). " +
      'For more than one host use SANDBOX_DRIVER=docker, with a DOCKER_HOST that all of them reach.',
  )
}
