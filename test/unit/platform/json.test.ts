import { setImmediate as nextTurn } from 'node:timers/promises'
import { describe, expect, test } from 'vitest'
import { exceededBound } from '#platform/json/bounds.ts'
import { parseJson } from '#platform/json/parse.ts'
import { parseJsonBytes, writeJson } from '#platform/json/thread.ts'

const bounds = { depth: 200, values: 50_000 }
const mebibyte = 1024 * 1024
const parse = (text: string) => parseJson(Buffer.from(text), bounds)
const nested = (levels: number, paths: string) => `${'[{"a":'.repeat(levels / 2)}${paths}${'}]'.repeat(levels / 2)}`

describe('a JSON text', () => {
  test('has at most 200 levels, with any number of values side by side', () => {
    const wide = nested(200, '1')
    expect(JSON.stringify(parse(wide))).toBe(wide)
    expect(parse(`[${'{},[],'.repeat(500)}0]`)).toHaveLength(1001)
    for (const levels of [202, 1_000_000]) {
      expect(() => parse(nested(levels, '1'))).toThrow(expect.objectContaining({ kind: 'invalid' }))
    }
    expect(() => parse('['.repeat(1_000_000))).toThrow(/deeper than 200 levels|50,000 values/)
  })

  test.each([
    ['brackets', '['.repeat(300)],
    ['commas', ','.repeat(60_000)],
    ['an escaped quote before them', `"${'{'.repeat(300)}`],
    ['escaped backslashes before them', `\\\\"${'['.repeat(300)}\\`],
  ])('counts nothing inside texts: %s', (_what, text) => {
    expect(parse(JSON.stringify([text, { [text]: text }]))).toEqual([text, { [text]: text }])
    expect(() => parse(`[${JSON.stringify(text)},${nested(200, '1')}]`)).toThrow(/levels/)
  })

  test.each<[string, number]>([
    ['1', 1],
    [' [ ] ', 1],
    ['[1, "a,b", null]', 4],
    ['{"a": {}, "b": [[], [1]]}', 8],
    ['[{"a": 1, "b": 1}, {"a": 1, "b": 1}]', 9],
    ['[{},{},{}]', 4],
    [`{"${'a'.repeat(60)}": 1}`, 3],
    [`{"${'漢'.repeat(60)}": 1}`, 3],
    [`{"${'漢'.repeat(64)}": 1}`, 4],
    [`{"${'a'.repeat(63)}": 1, "${'b'.repeat(200)}" : "${'c'.repeat(200)}"}`, 9],
  ])('%s has as many values as are counted: %i', (text, values) => {
    expect(exceededBound(Buffer.from(text), { depth: 9, values })).toBeNull()
    expect(exceededBound(Buffer.from(text), { depth: 9, values: values - 1 })).toBe('values')
  })

  test('with too many values is refused by name', () => {
    expect(parse(`[${'1,'.repeat(49_998)}1]`)).toHaveLength(49_999)
    expect(() => parse(`[${'1,'.repeat(49_999)}1]`)).toThrow(
      expect.objectContaining({ code: 'too_large', message: expect.stringContaining('50,000 values') }),
    )
  })
})

describe('a large JSON text', () => {
  /** Runs work, and returns its outcome with the number of turns that the event loop made meanwhile. */
  async function turnsDuring(work: Promise<unknown>): Promise<[unknown, number]> {
    let turns = 0
    let isDone = false
    const outcome = work
      .catch((error: unknown) => error)
      .finally(() => {
        isDone = true
      })
    for (; !isDone; turns += 1) await nextTurn()
    return [await outcome, turns]
  }

  test('is parsed while the event loop goes on', async () => {
    const value = { input: ['\\"'.repeat(2 * mebibyte), 'x'.repeat(10 * mebibyte), '🥣', 1.5, null, true, { a: [] }] }
    const [parsed, turns] = await turnsDuring(parseJsonBytes(Buffer.from(JSON.stringify(value)), bounds))
    expect(parsed).toEqual(value)
    expect(turns).toBeGreaterThan(3)
  })

  test.each<[string, string, object]>([
    ['too many values', `[${'1,'.repeat(mebibyte)}1]`, { code: 'too_large' }],
    ['too deep', `["${'x'.repeat(mebibyte)}",${nested(300, '1')}]`, { code: 'invalid_json' }],
    ['no JSON', `["${'x'.repeat(mebibyte)}",]`, { code: 'invalid_json', message: /no comma/ }],
    ['a key that no call accepts', `{"a":"${'x'.repeat(mebibyte)}","__proto__":{}}`, { message: /__proto__/ }],
    ['half a surrogate pair', `{"a":"${'x'.repeat(mebibyte)}\\ud83d"}`, { message: /surrogate/ }],
  ])(
    'is refused as a small one is: %s',
    async (_what, text, { code, message }: { code?: string; message?: RegExp }) => {
      const refused = await parseJsonBytes(Buffer.from(text), bounds).catch((error: unknown) => error)
      expect(refused).toMatchObject({ name: 'AppError', code: code ?? 'invalid_json' })
      if (message) expect((refused as Error).message).toMatch(message)
    },
  )

  test('waits in a line that has an end', async () => {
    const text = () => Buffer.from(`["${'x'.repeat(mebibyte)}"]`)
    const outcomes = await Promise.allSettled(Array.from({ length: 80 }, () => parseJsonBytes(text(), bounds)))
    const refused = outcomes.filter(({ status }) => status === 'rejected')
    expect(refused).toHaveLength(80 - 65)
    expect(refused[0]).toMatchObject({ reason: { code: 'overloaded', retryAfterSeconds: 1 } })
    expect(await parseJsonBytes(text(), bounds)).toHaveLength(1)
  })

  test('is written while the event loop goes on, as a small one is', async () => {
    const value = { first: ['\u0001'.repeat(mebibyte)], padding: '🥣x'.repeat(mebibyte), last: 1 }
    const [written, turns] = await turnsDuring(writeJson(value))
    expect(Buffer.from(written as Uint8Array).equals(Buffer.from(JSON.stringify(value)))).toBe(true)
    expect(turns).toBeGreaterThan(3)
    expect(await writeJson({ a: ['x'] })).toBe('{"a":["x"]}')
  })
})
