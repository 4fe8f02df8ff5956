import { clientTokenPrefix } from '#http/api-key.ts'
import type { Caller, FindTokenCaller } from '#http/caller.ts'
import type { SessionScope } from '#http/session-scope.ts'
import type { Vault } from '#platform/secrets.ts'
import type { Callers } from './callers.ts'

/** The content of a client token. It is stored only in the token. */
interface Grant {
  /** The id of the key that made the token. */
  keyHash: string
  instanceId: string
  sessions: SessionScope
  endUser: string | null
  /** In ms since 1970, by the clock of the database: processes may have different clocks. */
  expiresAt: number
}

/** The sealing context of tokens: no other sealed value is valid as a token. */
const place = 'client_tokens'

/** Makes a client token. It is sealed: its holder can neither read nor change it. */
export const sealClientToken = (vault: Vault, grant: Grant): string =>
  clientTokenPrefix + vault.seal(JSON.stringify(grant), place)

function unsealGrant(vault: Vault, token: string): Grant | null {
  try {
    return JSON.parse(vault.unseal(token.slice(clientTokenPrefix.length), place))
  } catch {
    return null
  }
}

/**
 * Finds the caller of a client token: its key, with only the permission `interact` in the sessions of the token. A
 * token ends with its key. A malformed one costs no query.
 */
export const createFindTokenCaller =
  (vault: Vault, callers: Pick<Callers, 'find' | 'databaseMs'>): FindTokenCaller =>
  async (token): Promise<Caller | null> => {
    const grant = unsealGrant(vault, token)
    if (!grant) return null
    const { keyHash, instanceId, sessions, endUser, expiresAt } = grant
    const caller = await callers.find(keyHash)
    const msLeft = expiresAt - callers.databaseMs()
    if (!caller || msLeft <= 0) return null
    return {
      ...caller,
      permissions: ['interact'],
      instanceIds: [instanceId],
      sessions,
      token: { expiresAt, endsAt: performance.now() + msLeft, endUser },
    }
  }
