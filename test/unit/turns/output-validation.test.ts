import { describe, expect, test } from 'vitest'
import { correction, formatInstructions, type JsonFormat } from '#turns/output/format.ts'
import { checkOutput, schemaFault } from '#turns/output/validation.ts'

const never = new AbortController().signal
const inSchema = (schema: Record<string, unknown>): JsonFormat => ({
  type: 'json_schema',
  name: 'place',
  description: null,
  schema,
  strict: null,
})
const judge = (schema: Record<string, unknown>) => schemaFault('org', inSchema(schema), never)
const check = (schema: Record<string, unknown>, answer: string, organization = 'org') =>
  checkOutput(organization, inSchema(schema), answer, never)

const place = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] }
const slow = { properties: { a: { pattern: '^(a+)+$' } } }
const slowAnswer = JSON.stringify({ a: `${'a'.repeat(40)}b` })
const costly = { code: 'invalid_output', doNotRetry: true, message: expect.stringContaining('in time') }

describe('a schema', () => {
  test.each<[Record<string, unknown>]>([
    [{}],
    [place],
    [{ ...place, $schema: 'https://json-schema.org/draft/2020-12/schema' }],
    [{ ...place, $schema: 'http://json-schema.org/draft-07/schema#' }],
    [{ $ref: '#/$defs/tree', $defs: { tree: { properties: { next: { $ref: '#/$defs/tree' } } } } }],
    [{ type: 'object', properties: { id: { type: 'string', format: 'uuid' }, $async: {} }, 'x-mine': 1 }],
  ])('%j is accepted', async (schema) => {
    expect(await judge(schema)).toBeNull()
  })

  test.each<[Record<string, unknown>, string]>([
    [{ type: 'objekt' }, 'schema/type must be equal to one of the allowed values'],
    [{ properties: { a: 3 } }, 'schema/properties/a must be object,boolean'],
    [{ $ref: 'https://example.com/a.json' }, "can't resolve reference https://example.com/a.json"],
    [{ $ref: 'https://json-schema.org/draft/2020-12/schema' }, "can't resolve reference"],
    [{ $ref: '#/$defs/none' }, "can't resolve reference #/$defs/none"],
    [{ $schema: 'http://json-schema.org/draft-04/schema#' }, '$schema must be JSON Schema 2020-12 or draft-07'],
    [{ $schema: 7 }, '$schema must be JSON Schema 2020-12 or draft-07'],
    [{ pattern: '(' }, 'schema/pattern'],
    [{ pattern: '[' }, 'schema/pattern'],
    [{ $async: true }, '$async'],
    [{ properties: { a: { $async: true, type: 'string' } } }, 'async schema in sync schema'],
  ])('%j is refused', async (schema, why) => {
    const fault = await judge(schema)
    expect(fault).toMatch(/^is not valid: /)
    if (!why.endsWith('pattern')) expect(fault).toContain(why)
  })

  test('with the id of another one changes nothing for later ones', async () => {
    for (const $id of ['https://json-schema.org/draft/2020-12/schema', 'https://example.com/mine']) {
      await check({ $id, $defs: { b: { $id: 'https://example.com/b', type: 'number' } } }, '1')
    }
    expect(await judge({ $ref: 'https://example.com/b' })).toContain("can't resolve reference")
    expect(await judge({ type: 'objekt' })).not.toBeNull()
  })

  test('with thousands of properties is compiled in time', async () => {
    const properties = Object.fromEntries(Array.from({ length: 2000 }, (_, at) => [`p${at}`, { type: 'string' }]))
    expect(await check({ properties, additionalProperties: false }, '{"p1999":1}')).toEqual({
      fault: 'answer/p1999 must be string',
    })
  })
})

describe('an answer', () => {
  test.each([
    ['{"city":"Rome"}', '{"city":"Rome"}'],
    [' \n{"city": "Rome"}\n', '{"city": "Rome"}'],
    ['```json\n{"city":"Rome"}\n```', '{"city":"Rome"}'],
    ['```\n{"city":"Rome"}```', '{"city":"Rome"}'],
    ['Here it is:\n```JSON\n{"city":"R```me"}\n```\nGood luck!', '{"city":"R```me"}'],
    ['I open the file.\n\n{\n  "city": "Rome"\n}', '{\n  "city": "Rome"\n}'],
  ])('%j is the JSON %j', async (answer, text) => {
    expect(await check(place, answer)).toEqual({ text })
  })

  test.each([
    ['Rome', 'it is not JSON'],
    ['', 'it is not JSON'],
    ['{"city":"Rome"', 'it is not JSON'],
    ['It is {"city":"Rome"}', 'it is not JSON'],
    ['{"city":1}', 'answer/city must be string'],
    ['["Rome"]', 'answer must be object'],
    ['{}', "answer must have required property 'city'"],
  ])('%j is refused: %s', async (answer, fault) => {
    expect(await check(place, answer)).toEqual({ fault })
  })

  test('is refused with all its faults, of limited length', async () => {
    const two = { properties: { a: { type: 'number' }, b: { enum: [1] } }, additionalProperties: false }
    expect(await check(two, '{"a":"x","b":2}')).toEqual({
      fault: 'answer/a must be number, answer/b must be equal to one of the allowed values',
    })
    const many = await check({ items: { type: 'number' } }, JSON.stringify(Array.from({ length: 1000 }, () => 'x')))
    expect(many).toEqual({ fault: expect.stringMatching(/^.{500}$/) })
  })

  test('is judged by the draft of the schema, and by its own properties', async () => {
    const pair = { $schema: 'http://json-schema.org/draft-07/schema#', items: [{ type: 'string' }] }
    expect(await check(pair, '[1]')).toEqual({ fault: 'answer/0 must be string' })
    const newer = { prefixItems: [{ type: 'string' }] }
    expect(await check(newer, '[1]')).toEqual({ fault: 'answer/0 must be string' })
    expect(await check({ required: ['constructor'] }, '{}')).toHaveProperty('fault')
  })

  test('is an object for json_object', async () => {
    const object = { type: 'json_object' } as const
    expect(await checkOutput('org', object, '{"a":1}', never)).toEqual({ text: '{"a":1}' })
    expect(await checkOutput('org', object, '[1]', never)).toEqual({ fault: 'answer must be object' })
  })

  test('whose check never ends or overflows fails in time, and the next one is checked', async () => {
    const twice = (at: number) => ({ allOf: [{ $ref: `#/$defs/d${at}` }, { $ref: `#/$defs/d${at}` }] })
    const $defs = Object.fromEntries(Array.from({ length: 40 }, (_, at) => [`d${at}`, at === 39 ? {} : twice(at + 1)]))
    await expect(check(slow, slowAnswer)).rejects.toMatchObject(costly)
    await expect(check({ $defs, ...twice(0) }, '{}')).rejects.toMatchObject(costly)
    await expect(check({ $ref: '#' }, '{}')).rejects.toMatchObject(costly)
    expect(await check(place, '{"city":"Rome"}')).toHaveProperty('text')
  })

  test('waits for one check of another organization at most, and not for those whose turns have ended', async () => {
    const done: string[] = []
    const left = new AbortController()
    const others = Array.from({ length: 3 }, () =>
      checkOutput('other', inSchema(slow), slowAnswer, left.signal).catch((error: unknown) => {
        done.push('other')
        return error
      }),
    )
    await check(place, '{"city":"Rome"}')
    expect(done.length).toBeLessThanOrEqual(1)
    left.abort(new Error('left'))
    const errors = await Promise.all(others)
    expect(errors.at(-1)).toMatchObject({ message: 'left' })
  })
})

test('the agent gets the schema, and what is wrong with its answer', () => {
  expect(formatInstructions({ type: 'text' })).toBeNull()
  expect(formatInstructions({ type: 'json_object' })).toContain('one JSON object')
  const instructions = formatInstructions({ ...inSchema(place), description: 'Where it is' } as JsonFormat)
  for (const part of ['"place"', 'Where it is', JSON.stringify(place)]) expect(instructions).toContain(part)
  expect(correction('answer must be object')).toContain('answer must be object')
})
