import { setImmediate as nextTurn } from 'node:timers/promises'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { exceededBound } from '#platform/json/bounds.ts'
import { putBackLongTexts } from '#platform/json/long-texts.ts'
import { parseInParts, parseJson } from '#platform/json/parse.ts'
import { parseJsonBytes } from '#platform/json/thread.ts'
import { writeJson } from '#platform/json/write.ts'

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
      expect.objectContaining({ code: 'too_many_values', message: expect.stringContaining('50,000 values') }),
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
    ['too many values', `[${'1,'.repeat(mebibyte)}1]`, { code: 'too_many_values' }],
    ['too deep', `["${'x'.repeat(mebibyte)}",${nested(300, '1')}]`, { code: 'unsupported_json' }],
    ['no JSON', `["${'x'.repeat(mebibyte)}",]`, { code: 'invalid_json', message: /no comma/ }],
    ['a key that no call accepts', `{"a":"${'x'.repeat(mebibyte)}","__proto__":{}}`, { message: /__proto__/ }],
    ['half a surrogate pair', `{"a":"${'x'.repeat(mebibyte)}\\ud83d"}`, { message: /surrogate/ }],
  ])(
    'is refused as a small one is: %s',
    async (_what, text, { code, message }: { code?: string; message?: RegExp }) => {
      const refused = await parseJsonBytes(Buffer.from(text), bounds).catch((error: unknown) => error)
      expect(refused).toMatchObject({ name: 'AppError', kind: 'invalid', ...(code && { code }) })
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
})

describe('a JSON text whose long texts stay in its bytes', () => {
  const escapes = ['"', '\\', '\n', '\u0001', 'é', '漢', '🥣', 'x', '/']
  /** Texts of up to some 200 KB, so that there are some of several pieces, with any of the forms of an escape. */
  const text = fc
    .tuple(fc.array(fc.constantFrom(...escapes), { maxLength: 60 }), fc.constantFrom(1, 1, 9, 2500), fc.nat(20))
    .map(([parts, times, shift]) => 'y'.repeat(shift) + parts.join('').repeat(times))
  const value = fc.letrec((tie) => ({
    any: fc.oneof({ maxDepth: 4 }, text, fc.double(), fc.constant(null), tie('list'), tie('object')),
    list: fc.array(tie('any'), { maxLength: 5 }),
    object: fc.dictionary(fc.oneof(fc.string(), text), tie('any'), { maxKeys: 5 }),
  })).any
  const escaped = (json: string) =>
    json.replace(/[^ -~\n]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`)
  const json = fc
    .tuple(value, fc.boolean(), fc.constantFrom(0, 2))
    .map(([made, isEscaped, indent]) => (isEscaped ? escaped : String)(JSON.stringify(made, null, indent)))

  const outcome = (parse: () => unknown) => {
    try {
      return { value: parse() }
    } catch (error) {
      const { code, message } = error as { code: string; message: string }
      return { code, message }
    }
  }
  const inParts = (bytes: Buffer<ArrayBuffer>) => {
    const parsed = parseInParts(bytes, bounds)
    return 'bytes' in parsed ? putBackLongTexts(parsed) : parsed.value
  }
  const expectSame = (bytes: Buffer) =>
    expect(outcome(() => inParts(Buffer.from(new Uint8Array(bytes).buffer)))).toEqual(
      outcome(() => parseJson(Buffer.from(bytes), bounds)),
    )

  test('is the same value', () => {
    fc.assert(
      fc.property(json, (text) => void expectSame(Buffer.from(text))),
      { numRuns: 300 },
    )
  })

  test('is refused in the same words', () => {
    const places = ['"', '\\', '\n', '\u0000', '\\u12', '\\ud83d', '\\x', '}', ',', '{"__proto__":1}', '\u00ff']
    fc.assert(
      fc.property(json, fc.nat(), fc.constantFrom(...places), fc.nat(3), (text, seed, inserted, removed) => {
        const at = seed % (text.length + 1)
        const bytes = Buffer.from(text.slice(0, at) + inserted + text.slice(at + removed))
        expectSame(bytes)
        expectSame(Buffer.from(bytes.toString('latin1'), 'latin1').subarray(0, at + 1))
      }),
      { numRuns: 300 },
    )
  })

  test('may be one long text, have the same name twice, and texts that look like what stands for them', () => {
    const long = 'x\\n'.repeat(100)
    for (const text of [`"${long}"`, `{"a":"${long}","a":"${long}2"}`, `["${long}","${long}" , {"${long}" : "0"}]`])
      expectSame(Buffer.from(text))
  })

  test('is written as it is in one piece', async () => {
    await fc.assert(
      fc.asyncProperty(value, async (made) => {
        const large = { first: made, padding: '🥣x'.repeat(mebibyte), last: [made] }
        const written = writeJson(large, 'owner')
        const pieces: Buffer[] = []
        for await (const piece of written) pieces.push(Buffer.from(piece))
        expect(typeof written).toBe('object')
        expect(Buffer.concat(pieces).equals(Buffer.from(JSON.stringify(large)))).toBe(true)
      }),
      { numRuns: 10 },
    )
  })
})
