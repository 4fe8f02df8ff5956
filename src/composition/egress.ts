import type { Db } from '#database/client.ts'
import { createFindEgressGrant } from '#egress/grants.ts'
import type { HostRule } from '#egress/hosts.ts'
import type { FindRelay } from '#egress/passages.ts'
import {
  createEgress,
  defaultEgressLimits,
  defaultEgressPlaces,
  type Egress,
  type EgressLimits,
} from '#egress/proxy.ts'
import { createResolve, type Resolve } from '#egress/reach.ts'
import { createEgressRecords } from '#egress/records.ts'
import { relayUrlFor } from '#instances/gateway/relay-url.ts'
import { isNamed } from '#instances/regions.ts'
import type { Logger } from '#platform/log.ts'
import type { Vault } from '#platform/secrets.ts'
import { createPlaces, type PlaceLimits } from '#platform/throttle.ts'
import { placeOf } from './operator-hosts.ts'
import type { OpenRegions } from './regions.ts'
import type { Startup } from './startup.ts'

/** Time to write the last requested hosts when the proxy ends. */
const writeTimeoutMs = 1000

export interface EgressSettings {
  /** The hosts for all agents, or for the agents of a region. */
  operatorHosts: readonly HostRule[] | ((region: string | null) => readonly HostRule[])
  findRelay?: FindRelay
  resolve?: Resolve
  limits?: Partial<EgressLimits>
  places?: Partial<PlaceLimits>
}

/** An egress proxy that does not listen yet. */
export interface StartedEgress extends Egress {
  /** Closes it, and writes its records. */
  end(): Promise<void>
}

/** Starts a proxy with the policies and the records of a database. Missing settings have their defaults. */
export function startEgress(
  { db, vault, log }: { db: Db; vault: Vault; log: Logger },
  { operatorHosts, findRelay, resolve, limits, places }: EgressSettings,
): StartedEgress {
  const records = createEgressRecords(db, log)
  const hostsIn = typeof operatorHosts === 'function' ? operatorHosts : () => operatorHosts
  const egress = createEgress({
    findGrant: createFindEgressGrant(db, vault, hostsIn),
    resolve: resolve ?? createResolve(),
    findRelay: findRelay ?? (async () => null),
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

/**
 * Opens the proxy of this process. It is served at the relay's port, and by drivers with a separate way for their
 * sandboxes.
 */
export async function openEgress(
  { log, drain }: Startup,
  { regions, ...parts }: { db: Db; vault: Vault; regions: OpenRegions },
): Promise<Egress> {
  const egress = startEgress(
    { ...parts, log },
    {
      operatorHosts: (name) => regions.all().find((region) => isNamed(region, name))?.operatorHosts ?? [],
      async findRelay({ host, port }, agent) {
        const region = regions.all().find((one) => isNamed(one, agent.region))
        if (!region) return null
        const { sandboxes, relay } = region
        const url = await relayUrlFor(sandboxes, relay, drain.signal)
        const place = placeOf(url)
        return place?.host === host && place.port === port ? { hasTls: url.startsWith('https:') } : null
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
