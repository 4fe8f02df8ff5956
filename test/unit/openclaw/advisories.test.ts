import { expect, test } from 'vitest'
import { advisoriesOf, firstGoodVersion, isOlder, refusalOf } from '#openclaw/release/advisories.ts'
import { defaultRelease, knownReleases, openclawVersion } from '#openclaw/releases.ts'

test.each([
  ['2026.1.29', '2026.2.2'],
  ['2026.9.6', '2026.10.1'],
  ['2026.7.2-beta.3', '2026.7.2'],
  ['2026.7.1', '2026.7.2-beta.3'],
  ['2026.3.23-2', '2026.3.24'],
])('%s is older than %s', (older, newer) => {
  expect(isOlder(older, newer)).toBe(true)
  expect(isOlder(newer, older)).toBe(false)
})

test.each(['2026.9.6', '2026.7.2-beta.3', '2026.3.23-2'])('%s is not older than itself', (version) => {
  expect(isOlder(version, version)).toBe(false)
})

test('a correction is as good as its version', () => {
  expect(isOlder('2026.3.23-2', '2026.3.23')).toBe(false)
})

test('A24: no release that Chowder ships has a known vulnerability', () => {
  for (const release of knownReleases()) {
    expect(advisoriesOf(release)).toEqual([])
    expect(refusalOf(release, firstGoodVersion)).toBeNull()
  }
})

test('A24: a release before the oldest version is refused by name', () => {
  const version = openclawVersion(defaultRelease)
  expect(refusalOf(defaultRelease, version)).toBeNull()
  expect(refusalOf(defaultRelease, '2099.1.1')).toBe(
    `OpenClaw ${version} of the release v1 is older than 2099.1.1, the oldest that this server starts.`,
  )
})
