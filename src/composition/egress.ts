import type { Db } from '#database/client.ts'
import { createFindEgressGrant, type EgressGrant } from '#egress/grants.ts'
import { type HostRule, hostAndPort, parseHostRule, readHost } from '#egress/hosts.ts'
import type { Destination } from '#egress/policy.ts'
import {
  createEgress,
  defaultEgressLimits,
  defaultEgressPlaces,
  type Egress,
  type EgressLimits,
} from '#egress/proxy.ts'
import { createEgressRecords } from '#egress/records.ts'
import { createResolve, type Resolve } from '#egress/resolve.ts'
import { relayUrlFor } from '#instances/gateway/relay-url.ts'
import { isNamed } from '#instances/regions.ts'
import type { Config } from '#platform/config.ts'
import { entriesOf } from '#platform/exposure.ts'
import type { Logger } from '#platform/log.ts'
import type { Vault } from '#platform/secrets.ts'
import { StartupError } from '#platform/startup-error.ts'
import { createPlaces, type PlaceLimits } from '#relay/places.ts'
import type { OpenRegions } from './regions.ts'
import type { Startup } from './startup.ts'

/** For the hosts that were asked for last, when the proxy ends. */
const writeTimeoutMs = 1000
const defaultPorts: Record<string, number> = { 'http:': 80, 'https:': 443 }

export interface EgressSettings {
  /** Those of all agents, or of the agents in a region. */
  operatorHosts: readonly HostRule[] | ((region: string | null) => readonly HostRule[])
  isRelay?(destination: Destination, agent: EgressGrant): Promise<boolean>
  resolve?: Resolve
  limits?: Partial<EgressLimits>
  places?: Partial<PlaceLimits>
}

/** An egress proxy, without what it listens on. */
export interface StartedEgress extends Egress {
  /** Closes it, and writes what it has recorded. */
  end(): Promise<void>
}

/** Starts a proxy with the policies and the records of a database. Settings that are left out have their defaults. */
export function startEgress(
  { db, vault, log }: { db: Db; vault: Vault; log: Logger },
  { operatorHosts, isRelay, resolve, limits, places }: EgressSettings,
): StartedEgress {
  const records = createEgressRecords(db, log)
  const hostsIn = typeof operatorHosts === 'function' ? operatorHosts : () => operatorHosts
  const egress = createEgress({
    findGrant: createFindEgressGrant(db, vault, hostsIn),
    resolve: resolve ?? createResolve(),
    isRelay: isRelay ?? (async () => false),
    places: createPlaces({ ...defaultEgressPlaces, ...places }),
    records,
    limits: { ...defaultEgressLimits, ...limits },
    log,
  })
  return Object.assign(egress, {
    async end() {
      egress.close()
      await records.close(writeTimeoutMs)
    },
  })
}

/** Reads EGRESS_ALLOWED_HOSTS. Throws StartupError. */
function readOperatorHosts(text: string | undefined): HostRule[] {
  return entriesOf(text).map((entry) => {
    const rule = parseHostRule(entry, { ranges: true })
    if (rule) return rule
    throw new StartupError(
      `EGRESS_ALLOWED_HOSTS has ${JSON.stringify(entry)}, which is no host. Write hosts as mattermost.internal:8065, ` +
        '*.internal:443, 10.1.2.3:8080 or 10.0.0.0/8:443, separated by commas.',
    )
  })
}

function placeOf(url: string): Destination | null {
  const { protocol, hostname, port } = new URL(url)
  const host = readHost(hostname)
  return host === null ? null : { host, port: port === '' ? (defaultPorts[protocol] ?? 0) : Number(port) }
}

/** The registry that the operator has named, from which agents install skills. */
function registryRule({ CLAWHUB_REGISTRY }: Config): HostRule[] {
  const place = CLAWHUB_REGISTRY === undefined ? null : placeOf(CLAWHUB_REGISTRY)
  const rule = place && parseHostRule(hostAndPort(place.host, place.port), { ranges: true })
  return rule ? [rule] : []
}

/**
 * Opens the proxy of this process. The relay's port serves it, and so may drivers, whose sandboxes have a way of their
 * own to it.
 */
export async function openEgress(
  { log, drain }: Startup,
  { regions, ...parts }: { db: Db; vault: Vault; regions: OpenRegions },
): Promise<Egress> {
  const rulesOf = new Map(
    regions
      .all()
      .map((region) => [
        region,
        [...readOperatorHosts(region.config.EGRESS_ALLOWED_HOSTS), ...registryRule(region.config)],
      ]),
  )
  const egress = startEgress(
    { ...parts, log },
    {
      operatorHosts: (name) =>
        regions.all().flatMap((region) => (isNamed(region, name) ? (rulesOf.get(region) ?? []) : [])),
      async isRelay({ host, port }, agent) {
        const region = regions.all().find((one) => isNamed(one, agent.region))
        if (!region) return false
        const { sandboxes, relay } = region
        const place = placeOf(await relayUrlFor(sandboxes, relay, drain.signal))
        return place?.host === host && place.port === port
      },
    },
  )
  const jails = await Promise.all(
    regions.served().map(({ sandboxes }) => sandboxes.serveJails?.('egress', egress.serveConnection)),
  )
  drain.add('relay', async () => {
    await Promise.all(jails.map((served) => served?.close()))
    await egress.end()
  })
  return egress
}
