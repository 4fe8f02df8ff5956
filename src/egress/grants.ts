import { batched } from '#database/batched.ts'
import { cachedFor } from '#database/cached.ts'
import type { Db } from '#database/client.ts'
import type { EgressPolicy } from '#database/schema.ts'
import { egressToken } from '#instances/gateway/tokens.ts'
import { unsealRelayToken } from '#instances/row.ts'
import { isId } from '#platform/ids.ts'
import type { Vault } from '#platform/secrets.ts'
import type { HostRule } from './hosts.ts'
import { type Rules, readRules, withinCeiling } from './policy.ts'

/** A replaced policy or token stays valid for this long. */
const cachedMs = 250
/** While this many queries run, connections wait and share the next one. */
const maxConcurrentQueries = 2

/** The hosts that the agent of an instance may reach. */
export interface EgressGrant {
  instanceId: string
  organizationId: string
  region: string | null
  rules: Rules
  /** The hosts that it may reach although they are not public. */
  operatorHosts: readonly HostRule[]
  /** The token that proves a connection to be the agent's. */
  token: string
}

interface GrantRow {
  id: string
  region: string | null
  organizationId: string
  sealedRelayToken: string | null
  own: EgressPolicy | null
  ceiling: EgressPolicy | null
}

/** A named statement: PostgreSQL plans it once for each connection. */
const findGrants = `
  SELECT i.id, i.organization_id AS "organizationId", i.sealed_relay_token AS "sealedRelayToken",
    i.region, i.egress AS own, o.egress AS ceiling
  FROM instances i
  JOIN organizations o ON o.id = i.organization_id
  WHERE i.id = ANY($1::uuid[]) AND i.relay_token_hash IS NOT NULL AND i.desired_state = 'running'
    AND o.suspended_at IS NULL AND o.deleted_at IS NULL`

/**
 * Finds the grant of an instance; null if it is unknown, is not to run, has yet to be started, or its organization is
 * suspended or deleted. Caches each answer, including misses, for less than a second.
 */
export type FindEgressGrant = (instanceId: string) => Promise<EgressGrant | null>

export function createFindEgressGrant(
  db: Db,
  vault: Vault,
  operatorHostsIn: (region: string | null) => readonly HostRule[],
): FindEgressGrant {
  const read = batched(maxConcurrentQueries, async (ids: readonly string[]) => {
    const { rows } = await db.$client.query<GrantRow>({ name: 'find_egress', text: findGrants, values: [ids] })
    const byId = new Map(rows.map((row) => [row.id, row]))
    return ids.map((id) => byId.get(id) ?? null)
  })

  function grantOf({ id, sealedRelayToken, own, ceiling, ...row }: GrantRow): EgressGrant | null {
    const relayToken = unsealRelayToken(vault, { id, sealedRelayToken })
    if (relayToken === null) return null
    const operatorHosts = operatorHostsIn(row.region)
    const rules = readRules(withinCeiling(own, ceiling))
    return { ...row, instanceId: id, rules, operatorHosts, token: egressToken(relayToken) }
  }

  const grants = cachedFor(cachedMs, (id) => read(id).then((row) => row && grantOf(row)))
  return async (id) => (isId(id) ? grants.find(id) : null)
}
