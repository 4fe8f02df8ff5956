import Fastify from 'fastify'
import { describe, expect, test } from 'vitest'
import { jsonParser } from '#http/json-body.ts'

const parse = jsonParser(Fastify())
const nested = (levels: number, paths: string) => `${'[{"a":'.repeat(levels / 2)}${paths}${'}]'.repeat(levels / 2)}`

describe('a JSON body', () => {
  test('has at most 200 levels, with any number of values side by side', () => {
    const wide = nested(200, '1')
    expect(JSON.stringify(parse(wide))).toBe(wide)
    expect(parse(`[${'{},[],'.repeat(500)}0]`)).toHaveLength(1001)
    for (const levels of [202, 1_000_000]) {
      expect(() => parse(nested(levels, '1'))).toThrow(expect.objectContaining({ kind: 'invalid' }))
    }
    expect(() => parse('['.repeat(1_000_000))).toThrow(/deeper than 200 levels/)
  })

  test.each([
    ['brackets', '['.repeat(300)],
    ['an escaped quote before them', `"${'{'.repeat(300)}`],
    ['escaped backslashes before them', `\\\\"${'['.repeat(300)}\\`],
  ])('counts no brackets inside texts: %s', (_what, text) => {
    expect(parse(JSON.stringify([text, { [text]: text }]))).toEqual([text, { [text]: text }])
    expect(() => parse(`[${JSON.stringify(text)},${nested(200, '1')}]`)).toThrow(/levels/)
  })

  test('of 20 MB is checked quickly', () => {
    const text = JSON.stringify([`${'\\"'.repeat(2_000_000)}`, 'x'.repeat(12_000_000)])
    const startedAt = performance.now()
    parse(text)
    expect(performance.now() - startedAt).toBeLessThan(15_000)
  })
})
