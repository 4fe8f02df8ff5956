import { isObject } from './json.ts'

/**
 * What ClawHub's scan and its moderators say of one version of a skill. `refused` is never installed; `unverified`, which
 * is everything that is not known to be good, only at the caller's own risk. `why` completes "because …".
 */
export type Verdict = { kind: 'clean' } | { kind: 'unverified' | 'refused'; why: string }

/** Words that mean harm or a moderator's no, wherever ClawHub writes them: a status, a state, a reason like `moderation.malware_blocked`. */
const refusing = new Set([
  'malicious',
  'malware',
  'held',
  'quarantined',
  'revoked',
  'blocked',
  'removed',
  'hidden',
  'banned',
  'withdrawn',
])

const shownCharacters = 100

const texts = (...values: unknown[]): string[] =>
  values.flat().filter((value): value is string => typeof value === 'string' && value !== '')

const wordsOf = (text: string) => text.toLowerCase().split(/[^a-z]+/)

const refusalIn = (said: readonly string[]): string | undefined =>
  said.flatMap(wordsOf).find((word) => refusing.has(word))

/** Judges an item of `security-verdicts` together with the skill's own record; neither has to be well-formed. */
export function verdictOf(item: Record<string, unknown>, detail: Record<string, unknown>): Verdict {
  const security = isObject(item.security) ? item.security : {}
  const moderation = isObject(detail.moderation) ? detail.moderation : {}
  const error = isObject(item.error) ? item.error : {}
  const reasons = Array.isArray(item.reasons) ? texts(...item.reasons) : []
  const said = texts(
    item.decision,
    item.moderationState,
    security.status,
    security.rawStatus,
    security.verdict,
    reasons,
  )

  if (error.code === 'version_unavailable') return { kind: 'refused', why: 'ClawHub has withdrawn this version' }
  const word = refusalIn([...said, ...texts(moderation.verdict, moderation.state)])
  if (word) return { kind: 'refused', why: `ClawHub says it is ${word}` }
  if (moderation.isMalwareBlocked === true) return { kind: 'refused', why: 'ClawHub has blocked it as malware' }
  if (moderation.isHiddenByMod === true || moderation.isRemoved === true) {
    return { kind: 'refused', why: 'ClawHub has taken it out of the registry' }
  }
  const isSuspicious = moderation.isSuspicious === true || [moderation.verdict, security.status].includes('suspicious')
  if (isSuspicious) return { kind: 'unverified', why: 'its scan found it suspicious' }
  const passed = item.ok === true && item.decision === 'pass' && reasons.length === 0
  if (passed && security.status === 'clean' && security.passed !== false) return { kind: 'clean' }
  const status = texts(security.status)[0]
  if (status === 'pending') return { kind: 'unverified', why: 'its scan is still pending' }
  const what = [...reasons, ...texts(status)].join(', ').slice(0, shownCharacters)
  return { kind: 'unverified', why: what === '' ? 'there is no verdict of a scan' : `its scan did not pass (${what})` }
}
