import { readFile } from 'node:fs/promises'
import { afterAll, describe, expect, test } from 'vitest'
import { sections } from '#api/docs/sections.ts'
import { createRoutes, documentText } from '#commands/openapi.ts'
import { permissions } from '#database/schema.ts'
import type { ApiDocument, Media } from '#http/openapi.ts'
import { checkerOf, examplesOf, formats, operationsOf, resolve, type Schema } from '../../support/operations.ts'
import { present } from '../../support/present.ts'

const app = await createRoutes()
const document = app.swagger() as unknown as ApiDocument
const operations = operationsOf(document)
afterAll(() => app.close())

/** The routes of the documentation itself, and the page for people at the link of an approval. */
const undocumented = [
  '/openapi.json',
  '/llms.txt',
  '/docs',
  '/docs/',
  '/docs/errors',
  '/docs/guides',
  '/docs/guides/{name}',
  '/docs/js/scalar.js',
  '/v1/approve/{token}',
]
  .map((path) => `GET ${path}`)
  .concat('POST /v1/approve/{token}')

/** All routes as the router lists them: `GET /v1/instances/{instance_id}`. */
function runningRoutes(): string[] {
  const above: string[] = []
  return app
    .printRoutes({ commonPrefix: false })
    .split('\n')
    .flatMap((line) => {
      const [, indent = '', part = '', methods = ''] = /^((?:│ {3}| {4})*)[├└]── (\S+) \((.+)\)$/.exec(line) ?? []
      if (part === '') return []
      const depth = indent.length / 4
      above.splice(depth, above.length, part)
      const path = above.join('').replace(/:(\w+)/g, '{$1}')
      return methods
        .split(', ')
        .filter((method) => method !== 'HEAD')
        .map((method) => `${method} ${path}`)
    })
}

describe('A20: the routes are the same in every description', () => {
  test('the document has every running route and no other', () => {
    const routes = runningRoutes()
    expect(routes).toContain('GET /v1/instances/{instance_id}')
    expect(routes.filter((route) => !undocumented.includes(route)).sort()).toEqual(
      operations.map(({ name }) => name).sort(),
    )
  })

  test('the committed openapi.json is the document; run `npm run openapi` and review what changed', async () => {
    const committed = await readFile(new URL('../../../openapi.json', import.meta.url), 'utf8')
    expect(JSON.parse(documentText(app))).toEqual(JSON.parse(committed))
  })
})

describe('generators of clients understand the document', () => {
  const schemas = Object.entries(document.components.schemas)

  test('no schema has the name of a type of JavaScript or of the browser', () => {
    const taken = Object.getOwnPropertyNames(globalThis)
    expect(schemas.map(([name]) => name).filter((name) => taken.includes(name))).toEqual([])
  })

  /** Every schema of the document, with its place. */
  function* schemasIn(value: unknown, place: string): Generator<[string, Schema]> {
    if (typeof value !== 'object' || value === null) return
    if (!Array.isArray(value)) yield [place, value as Schema]
    for (const [key, part] of Object.entries(value)) {
      if (!/^examples?$/.test(key)) yield* schemasIn(part, `${place}/${key}`)
    }
  }
  const all = [...schemasIn(document, '')]

  test('no property can only be null, and names follow no pattern', () => {
    const nullOnly = all.filter(([place, { type }]) => /\/properties\/\w+$/.test(place) && type === 'null')
    expect([...nullOnly, ...all.filter(([, schema]) => 'patternProperties' in schema)]).toEqual([])
  })

  test('every property says what it is', () => {
    const properties = all.flatMap(([place, schema]) =>
      Object.entries((schema.properties ?? {}) as Record<string, Schema>).map(([name, property]) => ({
        place: `${place}/${name}`,
        text: property.description ?? resolve(document, property).description,
      })),
    )
    expect(properties.length).toBeGreaterThan(500)
    expect(properties.filter(({ text }) => !text).map(({ place }) => place)).toEqual([])
  })

  test('every parameter says what it is', () => {
    const mute = operations.flatMap(({ name, operation }) =>
      (operation.parameters ?? [])
        .filter((parameter) => !('description' in parameter) && !parameter.schema.description)
        .map((parameter) => `${name} ${parameter.name}`),
    )
    expect(mute).toEqual([])
  })

  test('ids, times and addresses have their format', () => {
    const named = operations.flatMap(({ name, operation }) => [
      ...(operation.parameters ?? [])
        .filter((parameter) => ['instance_id', 'key_id'].includes(parameter.name))
        .map((parameter) => ({
          place: `${name} ${parameter.name}`,
          format: parameter.schema.format,
          expected: 'uuid',
        })),
      ...[operation.requestBody, ...Object.values(operation.responses)]
        .flatMap((part) => (part && 'content' in part ? Object.values(part.content ?? {}) : []))
        .flatMap((media) => examplesOf(media).flatMap((example) => [...textsIn(media.schema, example)]))
        .filter(({ key }) => key !== 'request_id') // may be yours
        .map(({ key, text, schema }) => ({
          place: `${name} ${key}`,
          format: schema.format,
          expected: (['uuid', 'date', 'date-time'] as const).find((format) => formats[format].test(text)),
        })),
    ])
    const withFormat = named.filter(({ expected }) => expected !== undefined)
    expect(withFormat.length).toBeGreaterThan(100)
    expect(withFormat.filter(({ format, expected }) => format !== expected)).toEqual([])
    const addresses = all.filter(([place, { type }]) => /\/\w*url$/.test(place) && type !== 'object')
    expect(addresses.length).toBeGreaterThan(5)
    expect(addresses.filter(([, { format }]) => format !== 'uri').map(([place]) => place)).toEqual([])
  })

  test('a union of named shapes says which `type` selects each', () => {
    const unions = all.filter(([, { oneOf }]) => oneOf !== undefined)
    expect(unions.length).toBeGreaterThan(3)
    for (const [place, { oneOf, discriminator }] of unions) {
      const { mapping = {} } = (discriminator ?? {}) as { mapping?: Record<string, string> }
      expect([...new Set(Object.values(mapping))], place).toEqual((oneOf as Schema[]).map(({ $ref }) => $ref))
      for (const [type, $ref] of Object.entries(mapping)) {
        const { properties } = resolve(document, { $ref })
        const { const: only, enum: several = [only] } = (properties as Record<string, Schema>).type as Schema
        expect(several).toContain(type)
      }
    }
  })

  test('no enum has only one value', () => {
    expect(all.filter(([, { enum: values }]) => Array.isArray(values) && values.length === 1)).toEqual([])
  })
})

describe('every operation documents what a caller needs', () => {
  test('operation ids are unique', () => {
    const ids = operations.map(({ operation }) => operation.operationId)
    expect(ids).toEqual([...new Set(ids)])
  })

  test('every section of the reference has operations, in the order of the sections', () => {
    const tags = [...new Set(operations.map(({ operation }) => operation.tags[0]))]
    expect(tags).toEqual(sections.map(({ name }) => name))
    const first = ['signUp', 'getOrganization', 'updateOrganization', 'deleteOrganization']
    expect(operations.slice(0, first.length).map(({ operation }) => operation.operationId)).toEqual(first)
  })

  const check = checkerOf(document)
  function expectFittingExamples(media: Media): void {
    const shown = examplesOf(media)
    expect(shown).not.toEqual([])
    for (const example of shown) expect(check(media.schema, example)).toEqual([])
  }

  test.each(operations)('$name: texts, permission, errors', ({ operation, path }) => {
    expect(operation).toMatchObject({
      operationId: expect.stringMatching(/^[a-z]+([A-Z][a-z]+)+$/),
      summary: expect.stringMatching(/^[A-Z].*[^.]$/),
      tags: [expect.toBeOneOf(document.tags.map(({ name }) => name))],
    })
    expect(operation.description).toMatch(/\S+\n\nNeeds /)
    const { 'x-permission': access, responses, parameters = [] } = operation
    expect(['public', 'any', 'org', ...permissions]).toContain(access)
    expect(operation.security).toEqual(access === 'public' ? [] : undefined)
    const statuses = Object.keys(responses)
    expect(statuses.filter((status) => !/^[1-5]\d\d$/.test(status))).toEqual([])
    // A request that becomes a WebSocket is answered with 101.
    expect(statuses.some((status) => status.startsWith('2') || status === '101')).toBe(true)
    expect(statuses).toEqual(
      expect.arrayContaining(access === 'public' ? ['500', '503'] : ['401', '403', '429', '500']),
    )
    if (path.includes('{instance_id}') && access !== 'public') expect(statuses).toContain('404')
    for (const { name, schema } of parameters.filter(({ schema }) => schema.type === 'integer')) {
      expect(schema, `${name} takes any number`).toMatchObject({
        minimum: expect.any(Number),
        maximum: expect.any(Number),
      })
    }
    expect(parameters.filter(({ in: place }) => place === 'path').map(({ name }) => `{${name}}`)).toEqual(
      path.match(/\{\w+\}/g) ?? [],
    )
  })

  const bodies = operations.flatMap(({ name, operation }) =>
    Object.entries(operation.requestBody?.content ?? {}).map(([type, content]) => ({ name, type, ...content })),
  )
  test.each(bodies)('$name: the body ($type) has examples that fit it', ({ type, ...media }) => {
    if (type !== 'multipart/form-data') expectFittingExamples(media)
  })

  test.each(bodies.filter(({ name }) => !/\/(responses|completions)$/.test(name)))(
    '$name: unknown fields of the body ($type) are refused',
    ({ type, schema }) => {
      if (type !== 'multipart/form-data') expect(resolve(document, schema).additionalProperties).toBe(false)
    },
  )

  test('every pattern stands beside its rule in words, which the answer to a wrong text quotes', () => {
    const withoutRule = [...JSON.stringify(document).matchAll(/"pattern":"(?:[^"\\\\]|\\\\.)*"(?!,"x-rule":"must )/g)]
    expect(withoutRule.map(([text]) => text)).toEqual([])
  })

  const answers = operations.flatMap(({ name, operation }) =>
    Object.entries(operation.responses).flatMap(([status, answer]) =>
      'content' in answer
        ? Object.entries(answer.content ?? {}).map(([type, content]) => ({ name, status, type, ...content }))
        : [],
    ),
  )
  test.each(answers)('$name: the answer $status ($type) has examples that fit it', ({ type, ...media }) => {
    if (type !== 'application/octet-stream') expectFittingExamples(media)
  })

  test.each(Object.entries(document.components.responses))(
    'the example of %s fits its schema',
    (_name, { content }) => {
      const { schema, example } = present(
        (content as Record<string, { schema: Schema; example: unknown }>)['application/json'],
      )
      expect(check(schema, example)).toEqual([])
    },
  )
})

/** The texts of an example, each with the name and the schema of its place. */
function* textsIn(part: Schema, value: unknown, key = ''): Generator<{ key: string; text: string; schema: Schema }> {
  const schema = resolve(document, part)
  if (typeof value === 'string') yield { key, text: value, schema }
  if (Array.isArray(value)) for (const item of value) yield* textsIn((schema.items ?? {}) as Schema, item, key)
  else if (typeof value === 'object' && value !== null) {
    const { properties = {} } = schema as { properties?: Record<string, Schema> }
    for (const [name, own] of Object.entries(value)) yield* textsIn(properties[name] ?? {}, own, name)
  }
}

test('S7: every list in a request has a length that it may have at most', () => {
  const unbounded: string[] = []
  const visit = (value: unknown, path: string): void => {
    const schema = resolve(document, value as Schema) as Record<string, unknown>
    if ([schema.type].flat().includes('array') && schema.maxItems === undefined) unbounded.push(path)
    for (const union of [schema.anyOf, schema.oneOf])
      for (const one of (union as Schema[] | undefined) ?? []) visit(one, path)
    for (const [name, one] of Object.entries(schema.properties ?? {})) visit(one, `${path}.${name}`)
    for (const one of [schema.items, schema.additionalProperties]) {
      if (typeof one === 'object' && one !== null) visit(one, `${path}[]`)
    }
  }
  for (const { name, operation } of operations) {
    for (const { name: parameter, schema } of operation.parameters ?? []) visit(schema, `${name}?${parameter}`)
    for (const { schema } of Object.values(operation.requestBody?.content ?? {})) visit(schema, name)
  }
  expect(unbounded).toEqual([])
})
