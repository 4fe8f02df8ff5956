import { networkInterfaces } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Db } from '#database/client.ts'
import type { Egress } from '#egress/proxy.ts'
import { sandboxHost } from '#instances/gateway/relay-url.ts'
import { isNamed } from '#instances/regions.ts'
import type { BaseUrls } from '#openclaw/config/config.ts'
import type { Logger } from '#platform/log.ts'
import type { Vault } from '#platform/secrets.ts'
import { createPlaces, type PlaceLimits } from '#platform/throttle.ts'
import type { ObserveCall } from '#relay/call.ts'
import type { ConnectionLimits } from '#relay/connections.ts'
import { createFindGrant } from '#relay/grants.ts'
import { createPace, defaultPace, type PaceTimes } from '#relay/pace.ts'
import { createRelay, defaultPlaces } from '#relay/relay.ts'
import { defaultConnections, type ForwardProxy, type RelayServer, serveRelay } from '#relay/server.ts'
import { createUpstreams } from '#relay/upstreams.ts'
import { createBudgetReader } from '#relay/usage/budgets.ts'
import { createCallWriter } from '#relay/usage/call-writer.ts'
import { createMeter } from '#relay/usage/meter.ts'
import { SandboxUnavailableError } from '#sandbox/driver.ts'
import { isLoopback } from '#settings/exposure.ts'
import { installationId } from './installation.ts'
import type { OpenRegion, OpenRegions } from './regions.ts'
import { turnDrainMs } from './settings.ts'
import type { Startup } from './startup.ts'

const retryMs = 5000
/** Time to write the last calls during shutdown. */
const writeTimeoutMs = 3000

export interface RelaySettings {
  /** The base URLs for all agents, or by region, under the name in their rows; null for an unknown region. */
  baseUrls: BaseUrls | ((region: string | null) => BaseUrls | null)
  host: string
  port: number
  /** The id of this process in the table `processes`. */
  processId: string
  pace?: Partial<PaceTimes>
  places?: Partial<PlaceLimits>
  connections?: Partial<ConnectionLimits>
  /** Observes the calls in place of the meter. */
  observe?: ObserveCall
  /** Serves requests to other hosts at the same port. */
  proxy?: ForwardProxy
}

/** A relay that does not listen yet. */
interface StartedRelay {
  /** Throws StartupError when it cannot listen there. */
  listen(host: string, port: number): Promise<RelayServer>
  /** Writes the usage of calls. Close the servers first. */
  end(): Promise<void>
}

type RelayParts = { db: Db; vault: Vault; log: Logger }

/** Prepares a relay, whose servers share its limits. */
async function prepareRelay(
  { db, vault, log }: RelayParts,
  { baseUrls, processId, pace, places, connections, observe, proxy }: Omit<RelaySettings, 'host' | 'port'>,
): Promise<StartedRelay> {
  const writer = createCallWriter(db, processId, log)
  const upstreams = createUpstreams(typeof baseUrls === 'function' ? baseUrls : () => baseUrls)
  const relay = createRelay({
    findGrant: createFindGrant(db, vault),
    pace: createPace({ ...defaultPace, ...pace }),
    places: createPlaces({ ...defaultPlaces, ...places }),
    upstreams,
    observe: observe ?? createMeter(writer, createBudgetReader(db)),
    log,
  })
  const installation = await installationId(db)
  return {
    listen: (host, port) =>
      serveRelay(relay, {
        host,
        port,
        installation,
        connections: { ...defaultConnections, ...connections },
        proxy: proxy ?? null,
      }),
    async end() {
      await upstreams.close()
      await writer.close(writeTimeoutMs)
    },
  }
}

/** Starts a relay with one server. Throws StartupError when it cannot listen. */
export async function startRelay(parts: RelayParts, settings: RelaySettings): Promise<RelayServer> {
  const relay = await prepareRelay(parts, settings)
  const server = await relay.listen(settings.host, settings.port)
  return {
    port: server.port,
    serve: server.serve,
    async close(drainMs) {
      await server.close(drainMs)
      await relay.end()
    },
  }
}

/**
 * Opens the relay for the regions that this process serves. It listens where agents reach it: RELAY_URL
 * or their platform determines that. While the platform is unreachable, no agent runs there, and this keeps trying after it has returned.
 * In a drain, open calls get the rest of the turns' time. Throws StartupError when it cannot listen.
 */
export async function openRelay(
  { config, log, drain }: Startup,
  parts: {
    db: Db
    vault: Vault
    processId: string
    regions: OpenRegions
    /** Serves requests to other hosts at the port of the relay. */
    egress: Egress
  },
): Promise<void> {
  const { processId, regions, egress: proxy } = parts
  const { RELAY_PORT: port } = config
  let drainBeganAt = Number.POSITIVE_INFINITY
  drain.signal.addEventListener('abort', () => {
    drainBeganAt = performance.now()
  })
  const baseUrls = (name: string | null) => regions.all().find((region) => isNamed(region, name))?.baseUrls ?? null
  const relay = await prepareRelay({ ...parts, log }, { baseUrls, processId, proxy })
  /** Servers by host; regions may share one. */
  const servers = new Map<string, Promise<RelayServer>>()
  const jails: { close(): Promise<void> }[] = []
  drain.add('relay', async ({ interrupted }) => {
    await Promise.all(jails.map((served) => served.close()))
    const leftMs = turnDrainMs(config) - (performance.now() - drainBeganAt)
    const listening = await Promise.allSettled(servers.values())
    await Promise.all(
      listening.map(
        (server) => server.status === 'fulfilled' && server.value.close(interrupted ? 0 : Math.max(0, leftMs)),
      ),
    )
    await relay.end()
  })
  const serverAt = (host: string): Promise<RelayServer> => {
    const known = servers.get(host)
    if (known) return known
    const made = relay.listen(host, port)
    servers.set(host, made)
    made.then(
      () => log.info({ address: host, port }, 'the relay listens for the calls of agents'),
      () => servers.delete(host),
    )
    return made
  }
  const listen = async ({ sandboxes, config: { RELAY_URL } }: OpenRegion) => {
    const host = RELAY_URL === undefined ? await sandboxHost(sandboxes, drain.signal) : listenHost(RELAY_URL)
    const server = await serverAt(host)
    const served = await sandboxes.serveJails?.('relay', (_id, socket) => server.serve(socket))
    if (served) jails.push(served)
  }
  const listenOrLater = async (region: OpenRegion) => {
    await listen(region).catch((error: unknown) => {
      if (!(error instanceof SandboxUnavailableError)) throw error
      const regionLog = log.child({ region: region.region })
      regionLog.warn('the relay does not listen yet: the platform of the agents cannot be reached')
      void listenLater(() => listen(region), regionLog, drain.signal)
    })
  }
  await Promise.all(regions.served().map(listenOrLater))
}

/** The host in a URL where the relay is reached, if it is this machine's own address, else all addresses. */
export function listenHost(url: string): string {
  const host = new URL(url).hostname.replace(/^\[|\]$/g, '')
  const own = Object.values(networkInterfaces()).flatMap((addresses) => addresses ?? [])
  return isLoopback(host) || own.some(({ address }) => address === host) ? host : '0.0.0.0'
}

async function listenLater(listen: () => Promise<void>, log: Logger, signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    try {
      await sleep(retryMs, undefined, { signal })
      return await listen()
    } catch (error) {
      if (signal.aborted || error instanceof SandboxUnavailableError) continue
      log.error({ err: error }, 'the relay cannot listen: agents reach no model')
    }
  }
}
