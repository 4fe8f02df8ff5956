import type { SecretKind } from './secrets.ts'

interface Allowed {
  kinds: readonly SecretKind[]
  /** A pattern of the place, as `search.ts` names it. */
  place: RegExp
  reason: string
}

/** The places where a secret may stand in the clear. Whatever belongs to an instance may be in its own sandbox only. */
export const allowed: readonly Allowed[] = [
  {
    kinds: ['gateway token', 'relay token'],
    place: /\/home\/state\/secrets\.json$/,
    reason: 'the secrets of the gateway: it has no other room for them yet',
  },
  {
    kinds: ['override secret', 'channel secret', 'skill secret'],
    place: /\/home\/state\/openclaw\.json[^/]*$/,
    reason: 'the configuration of the gateway and its backups: a gateway has no other room for these yet',
  },
  {
    kinds: ['channel secret'],
    place: /\/home\/state\/state\/openclaw\.sqlite(-wal|-shm)?$/,
    reason: "OpenClaw's own database, in which Matrix's plugin keeps the account that it is logged in to",
  },
  {
    kinds: ['secret key', 'password'],
    place: /\/(secret-key|database-password)$|\/volumes\/chowder_[a-z]+-secrets\/_data\/[a-z.-]+$/,
    reason: 'the file that holds it, for its owner alone',
  },
  {
    kinds: ['secret key', 'password', 'billing secret'],
    place: /^processes\/chowder\/\d+\/environment$/,
    reason: 'the operator has put it into the environment of Chowder',
  },
  {
    kinds: ['override secret'],
    place: /^answers$/,
    reason: 'the owner of an instance reads its overrides as they were written',
  },
]
