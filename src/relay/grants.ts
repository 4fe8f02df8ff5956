import { batched } from '#database/batched.ts'
import type { HardBudget } from '#database/budget-schema.ts'
import { cachedFor } from '#database/cached.ts'
import type { Db } from '#database/client.ts'
import type { ModelProvider } from '#database/schema.ts'
import { hashRelayToken, isRelayToken } from '#instances/gateway/tokens.ts'
import { providerKeyPlace } from '#instances/row.ts'
import type { Vault } from '#platform/secrets.ts'

/**
 * For this long a token or a key counts that has been replaced. Shorter than a worker takes to make an agent forget a
 * refusal: the turn that waits for that is to be asked with the new key.
 */
const cachedMs = 250
/** While this many queries run, calls wait and share the next one. */
const maxConcurrentQueries = 2

/** What a token allows. */
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
}

interface GrantRow extends Omit<Grant, 'key'> {
  sealedKey: string | null
}

export interface ProviderKey {
  /** Stands for this very key, and is no secret. */
  id: string
  value: string
}

/** A named statement: PostgreSQL plans it once for each connection, which takes longer than to run it. */
const findGrants = `
  SELECT i.relay_token_hash AS "tokenHash", i.id AS "instanceId", i.organization_id AS "organizationId",
    i.model_provider AS provider, i.region, k.sealed_key AS "sealedKey",
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
 * Finds what a token allows; null for one that is unknown or replaced, whose instance is not to run, or whose
 * organization is suspended or deleted. Each answer is used again for less than a second from the query on, also that
 * there is none.
 * A token that was not copied whole, or is a guess, costs no query.
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

  function grantOf({ sealedKey, ...row }: GrantRow): Grant {
    if (sealedKey === null) return { ...row, key: null }
    const value = vault.unseal(sealedKey, providerKeyPlace(row.organizationId, row.provider))
    return { ...row, key: { id: sealedKey, value } }
  }

  // Each apart: a key that cannot be unsealed is no fault of the others in the query.
  const grants = cachedFor(cachedMs, (hash) => read(hash).then((row) => row && grantOf(row)))
  return async (token) => (isRelayToken(token) ? grants.find(hashRelayToken(token).toString('base64')) : null)
}
