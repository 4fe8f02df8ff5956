import { batched } from '#database/batched.ts'
import type { HardBudget } from '#database/budget-schema.ts'
import { cachedFor } from '#database/cached.ts'
import type { Db } from '#database/client.ts'
import type { EgressPolicy, ModelProvider } from '#database/schema.ts'
import { isOpen, withinCeiling } from '#egress/policy.ts'
import { hashRelayToken, isRelayToken } from '#instances/gateway/tokens.ts'
import { providerKeyPlace } from '#instances/row.ts'
import type { Vault } from '#platform/secrets.ts'

/**
 * A replaced token or key stays valid for this long. Shorter than a worker takes to make an agent forget a refusal: the
 * turn that waits for that must use the new key.
 */
const cachedMs = 250
/** While this many queries run, calls wait and share the next one. */
const maxConcurrentQueries = 2

/** The grant of a token. */
export interface Grant {
  instanceId: string
  organizationId: string
  region: string | null
  provider: ModelProvider
  /** The organization's key for the provider; null without one. */
  key: ProviderKey | null
  /** The hard budgets of the instance and of the organization, without those of end users. */
  budgets: readonly HardBudget[]
  /** Whether there are hard budgets of end users. */
  hasUserBudgets: boolean
  hasOpenEgress: boolean
}

interface GrantRow extends Omit<Grant, 'key' | 'hasOpenEgress'> {
  sealedKey: string | null
  egress: EgressPolicy | null
  ceiling: EgressPolicy | null
}

export interface ProviderKey {
  /** Identifies this exact key without revealing it. */
  id: string
  value: string
}

/** A named statement: PostgreSQL plans it once for each connection, which takes longer than running it. */
const findGrants = `
  SELECT i.relay_token_hash AS "tokenHash", i.id AS "instanceId", i.organization_id AS "organizationId",
    i.model_provider AS provider, i.region, i.egress, o.egress AS ceiling, k.sealed_key AS "sealedKey",
    coalesce((SELECT json_agg(budget) FROM hard_budgets(i.organization_id, i.id, NULL) AS budget), '[]') AS budgets,
    EXISTS (
      SELECT FROM budgets b
      WHERE b.owner_id IN (i.organization_id, i.id) AND b.scope = 'end_user' AND b.mode = 'hard'
    ) AS "hasUserBudgets"
  FROM instances i
  JOIN organizations o ON o.id = i.organization_id
  LEFT JOIN provider_keys k ON k.organization_id = i.organization_id AND k.provider = i.model_provider
  WHERE i.relay_token_hash = ANY($1::bytea[]) AND i.desired_state = 'running' AND o.suspended_at IS NULL
    AND o.deleted_at IS NULL`

/**
 * Finds the grant of a token; null if it is unknown or replaced, its instance is not to run, or its organization is
 * suspended or deleted. Caches each answer, including misses, for less than a second after its query. An incompletely
 * copied or guessed token costs no query.
 */
export type FindGrant = (token: string) => Promise<Grant | null>

export function createFindGrant(db: Db, vault: Vault): FindGrant {
  const read = batched(maxConcurrentQueries, async (hashes: readonly string[]) => {
    const { rows } = await db.$client.query<GrantRow & { tokenHash: Buffer }>({
      name: 'find_grants',
      text: findGrants,
      values: [hashes.map((hash) => Buffer.from(hash, 'base64'))],
    })
    const byHash = new Map(rows.map((row) => [row.tokenHash.toString('base64'), row]))
    return hashes.map((hash) => byHash.get(hash) ?? null)
  })

  function grantOf({ sealedKey, egress, ceiling, ...row }: GrantRow): Grant {
    const hasOpenEgress = isOpen(withinCeiling(egress, ceiling))
    if (sealedKey === null) return { ...row, hasOpenEgress, key: null }
    const value = vault.unseal(sealedKey, providerKeyPlace(row.organizationId, row.provider))
    return { ...row, hasOpenEgress, key: { id: sealedKey, value } }
  }

  // Each separately: a key that cannot be unsealed must not fail the others in the query.
  const grants = cachedFor(cachedMs, (hash) => read(hash).then((row) => row && grantOf(row)))
  return async (token) => (isRelayToken(token) ? grants.find(hashRelayToken(token).toString('base64')) : null)
}
