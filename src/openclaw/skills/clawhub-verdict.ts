import { isObject } from '#openclaw/json.ts'

/**
 * The verdict of ClawHub's scan and moderators on one version of a skill. A `refused` version is never installed. An
 * `unverified` one, which is any version not known to be clean, is installed only at the caller's own risk. `reason`
 * completes "because …".
 */
export type Verdict = { kind: 'clean' } | { kind: 'unverified' | 'refused'; reason: string }

/**
 * Words in a status, a state or a reason (such as `moderation.malware_blocked`) that mean harm or a moderator's
 * refusal.
 */
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

const findRefusal = (values: readonly string[]): string | undefined =>
  values.flatMap(wordsOf).find((word) => refusing.has(word))

/** Reads the verdict from an item of `security-verdicts` and the skill's own record. Either may be malformed. */
export function verdictOf(item: Record<string, unknown>, detail: Record<string, unknown>): Verdict {
  const security = isObject(item.security) ? item.security : {}
  const moderation = isObject(detail.moderation) ? detail.moderation : {}
  const error = isObject(item.error) ? item.error : {}
  const reasons = Array.isArray(item.reasons) ? texts(...item.reasons) : []
  const statuses = texts(
    item.decision,
    item.moderationState,
    security.status,
    security.rawStatus,
    security.verdict,
    reasons,
  )

  if (error.code === 'version_unavailable') return { kind: 'refused', reason: 'ClawHub has withdrawn this version' }
  const word = findRefusal([...statuses, ...texts(moderation.verdict, moderation.state)])
  if (word) return { kind: 'refused', reason: `ClawHub says it is ${word}` }
  if (moderation.isMalwareBlocked === true) return { kind: 'refused', reason: 'ClawHub has blocked it as malware' }
  if (moderation.isHiddenByMod === true || moderation.isRemoved === true) {
    return { kind: 'refused', reason: 'ClawHub has taken it out of the registry' }
  }
  const isSuspicious = moderation.isSuspicious === true || [moderation.verdict, security.status].includes('suspicious')
  if (isSuspicious) return { kind: 'unverified', reason: 'its scan found it suspicious' }
  const passed = item.ok === true && item.decision === 'pass' && reasons.length === 0
  if (passed && security.status === 'clean' && security.passed !== false) return { kind: 'clean' }
  const status = texts(security.status)[0]
  if (status === 'pending') return { kind: 'unverified', reason: 'its scan is still pending' }
  const details = [...reasons, ...texts(status)].join(', ').slice(0, shownCharacters)
  return {
    kind: 'unverified',
    reason: details === '' ? 'there is no verdict of a scan' : `its scan did not pass (${details})`,
  }
}

/** The verdict on a version without a list of files: the scanned files cannot be compared with the served ones. */
export const withoutFiles = (verdict: Verdict): Verdict =>
  verdict.kind === 'clean' ? { kind: 'unverified', reason: 'the registry does not list its files' } : verdict
