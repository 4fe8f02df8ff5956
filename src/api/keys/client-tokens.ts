import { clientTokenPrefix } from '#http/api-key.ts'
import type { Caller, FindTokenCaller } from '#http/auth.ts'
import type { SessionScope } from '#http/session-scope.ts'
import type { Vault } from '#platform/secrets.ts'
import type { Callers } from './callers.ts'

/** What a client token says. It is stored nowhere but in the token. */
interface Grant {
  /** Of the key that made the token. */
  keyHash: string
  instanceId: string
  sessions: SessionScope
  endUser: string | null
  /** In ms since 1970, by the clock of the database: the processes that make and take a token may have others. */
  expiresAt: number
}

/** The place that tokens are sealed for: nothing else that is sealed is good as a token. */
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
 * Finds whom a client token stands for: its key, with only the permission `interact` in the sessions of the token. A
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
