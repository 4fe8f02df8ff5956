import { describe, expect, test } from 'vitest'
import { verdictOf } from '#openclaw/skills/clawhub-verdict.ts'
import { parseReference, slugPattern } from '#openclaw/skills/skill-reference.ts'

const passing = { ok: true, decision: 'pass', reasons: [], security: { status: 'clean', passed: true } }

describe('verdictOf', () => {
  test('only a passed, clean scan without a reason against it is clean', () => {
    expect(verdictOf(passing, {})).toEqual({ kind: 'clean' })
    expect(verdictOf(passing, { moderation: { verdict: 'clean', isSuspicious: false } })).toEqual({ kind: 'clean' })
  })

  test.each([
    [{ security: { status: 'malicious' } }],
    [{ security: { status: 'clean', rawStatus: 'Malicious' } }],
    [{ security: { status: 'clean', verdict: 'malicious' } }],
    [{ decision: 'blocked' }],
    [{ moderationState: 'quarantined' }],
    [{ reasons: ['moderation.malware_blocked'] }],
    [{ reasons: ['scan:malicious'] }],
    [{ reasons: ['moderation.held'] }],
    [{ reasons: ['release.revoked'] }],
    [{ error: { code: 'version_unavailable' } }],
  ])('%j is refused, even when the rest is fine', (wrong) => {
    expect(verdictOf({ ...passing, ...wrong }, {})).toMatchObject({ kind: 'refused' })
  })

  test.each([
    [{ isMalwareBlocked: true }],
    [{ isHiddenByMod: true }],
    [{ isRemoved: true }],
    [{ verdict: 'malicious' }],
  ])('a skill with the moderation %j is refused, whatever its scan says', (moderation) => {
    expect(verdictOf(passing, { moderation })).toMatchObject({ kind: 'refused' })
  })

  test.each([
    [{ security: { status: 'suspicious', passed: false } }, 'suspicious'],
    [{ ok: false, decision: 'fail', reasons: ['security.pending'], security: { status: 'pending' } }, 'pending'],
    [{ ok: false, decision: 'fail', reasons: ['security.error'], security: { status: 'error' } }, 'security.error'],
    [{ security: null }, 'no verdict'],
    [{ security: { status: 'clean', passed: false } }, 'did not pass'],
    [{ ok: 'true' }, 'did not pass'],
    [{ decision: 'PASS' }, 'did not pass'],
    [{ reasons: ['scan.stale'] }, 'scan.stale'],
    [{ security: { status: 'sparkling' } }, 'sparkling'],
  ])('%j is unverified and says reason', (wrong, reason) => {
    const verdict = verdictOf({ ...passing, ...wrong }, {})
    expect(verdict).toEqual({ kind: 'unverified', reason: expect.stringContaining(reason) })
  })

  test('no verdict, and a suspicion of the latest version, are unverified', () => {
    expect(verdictOf({}, {})).toMatchObject({ kind: 'unverified' })
    expect(verdictOf(passing, { moderation: { isSuspicious: true } })).toMatchObject({ kind: 'unverified' })
  })
})

describe('slugs', () => {
  const isSlug = (text: string) => new RegExp(slugPattern).test(text)

  test.each(['web-search', 'a', '@acme/web-search', '@a.b_c-d/x1'])('%s is one', (text) => {
    expect(isSlug(text)).toBe(true)
  })

  test.each([
    '',
    '-a',
    'a-',
    'a.b',
    'A',
    'a b',
    'a/b',
    '@a',
    '@/a',
    '@a/',
    '@a/b/c',
    '@../a',
    'a%2fb',
    'a\n',
    `a${'b'.repeat(100)}`,
  ])('%j is none', (text) => {
    expect(isSlug(text)).toBe(false)
    expect(parseReference(text)).toBe(null)
  })

  test('are a reference only with their owner', () => {
    expect(parseReference('@acme/web-search')).toEqual({ owner: 'acme', slug: 'web-search' })
    expect(parseReference('web-search')).toBe(null)
  })
})
