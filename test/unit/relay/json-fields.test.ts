import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { createFieldReader } from '#relay/usage/json-fields.ts'
import { createEventDataReader } from '#relay/usage/read-usage.ts'

/** The fields of a text that comes in pieces of so many bytes. */
function fieldsOf(text: string, paths: string[], size = Number.MAX_SAFE_INTEGER): [string, unknown][] {
  const found: [string, unknown][] = []
  const reader = createFieldReader(paths, (path, value) => void found.push([path, value]))
  const bytes = Buffer.from(text)
  for (let at = 0; at < bytes.length; at += size) reader.read(bytes.subarray(at, at + size))
  return found
}

describe('the fields of a JSON text', () => {
  it('are found at their paths only', () => {
    const text = JSON.stringify({
      model: 'm"\\',
      deep: { model: 'other', usage: [{ usage: 1 }], list: [[{ n: 1 }], 'model'] },
      text: '"usage":{"n":9}, }]',
      usage: { n: 1, more: { '}': '{[' } },
      done: false,
      count: 12.5,
      missing: null,
    })
    expect(fieldsOf(text, ['model', 'usage', 'done', 'count', 'missing', 'deep.none'])).toEqual([
      ['model', 'm"\\'],
      ['usage', { n: 1, more: { '}': '{[' } }],
      ['done', false],
      ['count', 12.5],
      ['missing', null],
    ])
    expect(fieldsOf(text, ['deep.model', 'deep.usage.*.usage'])).toEqual([
      ['deep.model', 'other'],
      ['deep.usage.*.usage', 1],
    ])
    expect(fieldsOf('{"a":[{"b":1},{"b":2},[{"b":3}]]}', ['a.1.b'])).toEqual([['a.1.b', 2]])
  })

  it('are found by escaped keys, whole or in part', () => {
    const text = String.raw`{"mod\u0065l": "m", "\u0075\u0073\u0061\u0067\u0065": {"n": 1}, "a\/b": 2, "bad\x": 3, "z": 4}`
    expect(fieldsOf(text, ['model', 'usage.n', 'a/b', 'bad\\x', 'z'], 3)).toEqual([
      ['model', 'm'],
      ['usage.n', 1],
      ['a/b', 2],
      ['z', 4],
    ])
  })

  it('are the same wherever the text is cut', () => {
    const paths = ['a', 'b.a', 'b.c', '*.a', '*.b.a']
    fc.assert(
      fc.property(fc.json({ maxDepth: 5 }), fc.integer({ min: 1, max: 9 }), (text, size) => {
        const wrapped = `[{"a": ${text}, "b" :{"a":${text},"c":${text} }, "${'k'.repeat(100)}": ${text}},${text}]\n`
        const value = JSON.parse(text)
        const found = fieldsOf(wrapped, paths, size)
        expect(found.slice(0, 2)).toEqual([
          ['*.a', value],
          ['*.b.a', value],
        ])
        expect(fieldsOf(wrapped, paths)).toEqual(found)
      }),
    )
  })

  it('are left out when they are longer than a vendor makes them, and the next ones are found', () => {
    const text = JSON.stringify({ a: 'x'.repeat(20_000), skipped: 'x'.repeat(100_000), b: 1, c: [] })
    expect(fieldsOf(text, ['a', 'b', 'c'], 1000)).toEqual([
      ['b', 1],
      ['c', []],
    ])
  })

  it('are the end of a long text where only that is wanted', () => {
    const ends: unknown[] = []
    const reader = createFieldReader(['a', 'b'], (_, value) => void ends.push(value), ['a', 'b'])
    const bytes = Buffer.from(JSON.stringify({ a: [{ t: `${'x'.repeat(100_000)}"end` }], b: 'short' }))
    for (let at = 0; at < bytes.length; at += 700) reader.read(bytes.subarray(at, at + 700))
    expect(ends).toEqual([expect.stringMatching(/^x{4000,}\\"end"\}\]$/), '"short"'])
    expect(String(ends[0]).length).toBe(4096)
  })

  it('of what is no JSON are not looked for in vain: nothing is thrown', () => {
    fc.assert(
      fc.property(fc.string({ unit: fc.constantFrom(...'{}[]",:\\ a1') }), (text) => {
        fieldsOf(text, ['a', '*.a', 'b.a'], 3)
      }),
    )
  })
})

it('events: the data of each is a text of its own, whatever ends their lines', () => {
  for (const end of ['\n', '\r\n']) {
    const text = [
      ': comment',
      'event: one',
      'data: {"a": {"n": 1}, "b',
      '',
      'data:{"a":2 }',
      '',
      'data2: {"a":3}',
      'retry: 10',
      'data: {"b":',
      'data: {"a": "4"}}',
      '',
      'data: [DONE]',
      '',
      '',
    ].join(end)
    for (let size = 1; size < 12; size += 1) {
      const found: [string, unknown][] = []
      const fields = createFieldReader(['a', 'b.a'], (path, value) => void found.push([path, value]))
      const reader = createEventDataReader(fields)
      const bytes = Buffer.from(text)
      for (let at = 0; at < bytes.length; at += size) reader.read(bytes.subarray(at, at + size))
      expect(found).toEqual([
        ['a', { n: 1 }],
        ['a', 2],
        ['b.a', '4'],
      ])
    }
  }
})
