import { setTimeout as sleep } from 'node:timers/promises'
import type { Db } from '#database/client.ts'
import type { Egress } from '#egress/proxy.ts'
import { sandboxHost } from '#instances/gateway/relay-url.ts'
import type { BaseUrls } from '#openclaw/config.ts'
import type { Logger } from '#platform/log.ts'
import type { Vault } from '#platform/secrets.ts'
import type { ObserveCall } from '#relay/call.ts'
import type { ConnectionLimits } from '#relay/connections.ts'
import { createFindGrant } from '#relay/grants.ts'
import { createPace, defaultPace, type PaceTimes } from '#relay/pace.ts'
import { createPlaces, defaultPlaces, type PlaceLimits } from '#relay/places.ts'
import { createRelay } from '#relay/relay.ts'
import { defaultConnections, type ForwardProxy, type RelayServer, serveRelay } from '#relay/server.ts'
import { createUpstreams } from '#relay/upstreams.ts'
import { createBudgetLeases } from '#relay/usage/budget-leases.ts'
import { createCallWriter } from '#relay/usage/call-writer.ts'
import { createFindKeyBudgets } from '#relay/usage/key-budgets.ts'
import { createMeter } from '#relay/usage/meter.ts'
import { SandboxUnavailableError } from '#sandbox/driver.ts'
import { installationId } from './installation.ts'
import type { AnyDriver } from './sandboxes.ts'
import { sharedSettings, turnDrainMs } from './settings.ts'
import type { Startup } from './startup.ts'

const retryMs = 5000
/** For the calls that ended last, when the relay ends. */
const writeTimeoutMs = 3000

export interface RelaySettings {
  baseUrls: BaseUrls
  host: string
  port: number
  /** The id of this process in the table `processes`. */
  processId: string
  pace?: Partial<PaceTimes>
  places?: Partial<PlaceLimits>
  connections?: Partial<ConnectionLimits>
  /** Watches the calls in place of the meter. */
  observe?: ObserveCall
  /** Serves requests to other hosts at the same port. */
  proxy?: ForwardProxy
}

/** Starts a relay. Throws StartupError when it cannot listen. */
export async function startRelay(
  { db, vault, log }: { db: Db; vault: Vault; log: Logger },
  { baseUrls, host, port, processId, pace, places, connections, observe, proxy }: RelaySettings,
): Promise<RelayServer> {
  const writer = createCallWriter(db, processId, log)
  const leases = createBudgetLeases(db, processId, log)
  const upstreams = createUpstreams(baseUrls)
  const relay = createRelay({
    findGrant: createFindGrant(db, vault),
    pace: createPace({ ...defaultPace, ...pace }),
    places: createPlaces({ ...defaultPlaces, ...places }),
    upstreams,
    observe: observe ?? createMeter(writer, leases, createFindKeyBudgets(db)),
    log,
  })
  const server = await serveRelay(relay, {
    host,
    port,
    installation: await installationId(db),
    connections: { ...defaultConnections, ...connections },
    proxy: proxy ?? null,
  })
  return {
    port: server.port,
    serve: server.serve,
    async close(drainMs) {
      await server.close(drainMs)
      await upstreams.close()
      await writer.close(writeTimeoutMs)
      await leases.close()
    },
  }
}

/**
 * Opens the relay. Where it listens depends on the platform of the agents, unless RELAY_HOST says so: while that cannot
 * be reached, no agent runs there that could call it, and this goes on trying after it has returned. In a drain, open
 * calls get what is left of the time that turns have. Throws StartupError when it cannot listen.
 */
export async function openRelay(
  { config, log, drain }: Startup,
  parts: {
    db: Db
    vault: Vault
    processId: string
    sandboxes: Pick<AnyDriver, 'hostAddress' | 'serveJails'>
    /** Serves requests to other hosts at the port of the relay. */
    egress: Egress
  },
): Promise<void> {
  const { RELAY_HOST, RELAY_PORT: port } = config
  const { baseUrls } = sharedSettings(config)
  let drainBeganAt = Number.POSITIVE_INFINITY
  drain.signal.addEventListener('abort', () => {
    drainBeganAt = performance.now()
  })
  const listen = async () => {
    const host = RELAY_HOST ?? (await sandboxHost(parts.sandboxes, drain.signal))
    const { processId, egress: proxy } = parts
    const server = await startRelay({ ...parts, log }, { baseUrls, host, port, processId, proxy })
    const jails = await parts.sandboxes.serveJails?.('relay', (_id, socket) => server.serve(socket))
    log.info({ host, port }, 'the relay listens for the calls of agents')
    drain.add('relay', async ({ interrupted }) => {
      await jails?.close()
      const leftMs = turnDrainMs(config) - (performance.now() - drainBeganAt)
      return server.close(interrupted ? 0 : Math.max(0, leftMs))
    })
  }
  await listen().catch((error: unknown) => {
    if (!(error instanceof SandboxUnavailableError)) throw error
    log.warn('the relay does not listen yet: the platform of the agents cannot be reached')
    void listenLater(listen, log, drain.signal)
  })
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
