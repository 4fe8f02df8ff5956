import { expect, test } from 'vitest'
import { parseTimestamp, toMicroseconds, toSeconds } from '#platform/timestamps.ts'

test('a time is read in both documented forms and written in each', () => {
  const date = new Date('2026-02-14T16:00:00.123Z')
  expect(toSeconds(date)).toBe('2026-02-14T16:00:00Z')
  expect(toMicroseconds(date)).toBe('2026-02-14T16:00:00.123000+00:00')
  expect(parseTimestamp(toMicroseconds(date))).toEqual(date)
  expect(parseTimestamp(toSeconds(date))).toEqual(new Date('2026-02-14T16:00:00Z'))
  expect(parseTimestamp('2026-02-14T18:30:00+02:30')).toEqual(new Date('2026-02-14T16:00:00Z'))
  expect(parseTimestamp('2028-02-29T23:59:59-12:00')).toEqual(new Date('2028-03-01T11:59:59Z'))
})

test.each([
  '',
  'tomorrow',
  '1739548800',
  '2026-02-14',
  '2026-02-14T16:00:00',
  '2026-02-14 16:00:00Z',
  '2026-02-14T16:00Z',
  '2026-02-30T16:00:00Z',
  '2026-13-01T16:00:00Z',
  '2026-02-14T25:00:00Z',
  '2026-02-14T16:00:00+25:00',
  ' 2026-02-14T16:00:00Z',
  '+012026-02-14T16:00:00Z',
  '0000-06-01T00:00:00Z',
  '0001-01-01T00:00:00+01:00',
  '9999-12-31T23:59:59-00:01',
])('%j is no time', (text) => {
  expect(parseTimestamp(text)).toBeNull()
})
