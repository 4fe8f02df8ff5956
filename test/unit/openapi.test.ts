import { readFile } from 'node:fs/promises'
import { afterAll, describe, expect, test } from 'vitest'
import { errorsMarkdown } from '#api/docs/error-pages.ts'
import { about } from '#api/docs/introduction.ts'
import { createRoutes, documentText } from '#commands/openapi.ts'
import type { ApiDocument } from '#http/openapi.ts'
import { errorCodes } from '#platform/error-codes.ts'
import { checkerOf, operationsOf, resolve, type Schema } from '../support/operations.ts'
import { present } from '../support/present.ts'

const app = await createRoutes()
const document = app.swagger() as unknown as ApiDocument
const operations = operationsOf(document)
afterAll(() => app.close())

/** The routes of the documentation itself. */
const undocumented = ['/openapi.json', '/llms.txt', '/docs', '/docs/', '/docs/errors', '/docs/js/scalar.js'].map(
  (path) => `GET ${path}`,
)

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

  test('the table of endpoints in docs/api.md has every route of the document and no other', async () => {
    const table = await readFile(new URL('../../docs/api.md', import.meta.url), 'utf8')
    const rows = [...table.matchAll(/^\| (GET|POST|PUT|PATCH|DELETE) +\| `(\/[^`]+)` +\|/gm)]
    expect(rows.map(([, method, path]) => `${method} ${path}`).sort()).toEqual(
      operations.map(({ name }) => name).sort(),
    )
  })

  test('the committed openapi.json is the document; run `npm run openapi` and review what changed', async () => {
    const committed = await readFile(new URL('../../openapi.json', import.meta.url), 'utf8')
    expect(JSON.parse(documentText(app))).toEqual(JSON.parse(committed))
  })

  test('the committed docs/errors.md explains each error code; run `npm run openapi` and review what changed', async () => {
    const committed = await readFile(new URL('../../docs/errors.md', import.meta.url), 'utf8')
    expect(errorsMarkdown()).toBe(committed)
    expect([...committed.matchAll(/^## (\w+)$/gm)].map(([, code]) => code).sort()).toEqual(
      Object.keys(errorCodes).sort(),
    )
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

  /** Fields of OpenAI's formats have the meaning that they have there; docs/responses.md has the table. */
  const openAiFormats = /^(CreateResponse|CreateChatCompletion|AgentResponse|ChatCompletion|ResponseStreamEvent|Input)/
  test('every property of our own schemas says what it is', () => {
    const mute = schemas
      .filter(([name]) => !openAiFormats.test(name))
      .flatMap(([name, { properties = {} }]) =>
        Object.entries(properties as Record<string, Schema>)
          .filter(([, property]) => !property.description && !property.$ref)
          .map(([property]) => `${name}.${property}`),
      )
    expect(mute).toEqual([])
  })

  test('every parameter says what it is', () => {
    const mute = operations.flatMap(({ name, operation }) =>
      (operation.parameters ?? [])
        .filter((parameter) => !('description' in parameter) && !parameter.schema.description)
        .map((parameter) => `${name} ${parameter.name}`),
    )
    expect(mute).toEqual([])
  })

  test('times, ids and addresses of answers have their format', () => {
    const formatOf = (name: string, property: string) =>
      ((document.components.schemas[name]?.properties ?? {}) as Record<string, Schema>)[property]?.format
    expect(['id', 'created_at', 'gateway_url'].map((property) => formatOf('Instance', property))).toEqual([
      'uuid',
      'date-time',
      'uri',
    ])
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

  test('the list in src/api/docs/introduction.ts has each operation once, in the order of the document', () => {
    const ids = operations.map(({ operation }) => operation.operationId)
    expect([...about.operationOrder].sort()).toEqual([...ids].sort())
    const first = ['signUp', 'getOrganization', 'updateOrganization', 'deleteOrganization']
    expect(ids.slice(0, first.length)).toEqual(first)
  })

  const check = checkerOf(document)

  test.each(operations)('$name: texts, permission, errors', ({ operation, path }) => {
    expect(operation).toMatchObject({
      operationId: expect.stringMatching(/^[a-z]+([A-Z][a-z]+)+$/),
      summary: expect.stringMatching(/^[A-Z].*[^.]$/),
      tags: [expect.toBeOneOf(document.tags.map(({ name }) => name))],
    })
    expect(operation.description).toMatch(/\S+\n\nNeeds /)
    const { 'x-permission': access, responses, parameters = [] } = operation
    expect(['public', 'any', 'org', 'read', 'interact', 'configure', 'files', 'channels']).toContain(access)
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
  test.each(bodies)('$name: the body ($type) has an example that fits it', ({ type, schema, example }) => {
    if (type === 'multipart/form-data') return
    const shown = example ?? (resolve(document, schema).examples as unknown[] | undefined)?.[0]
    expect(shown).toBeDefined()
    expect(check(schema, shown)).toEqual([])
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
  test.each(answers)('$name: the answer $status ($type) has an example that fits it', ({ type, schema, example }) => {
    if (type !== 'application/json') return
    const shown = example ?? exampleOf(schema)
    expect(shown).toBeDefined()
    expect(check(schema, shown)).toEqual([])
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

/** The example of a schema, or a list with the example of its items. */
function exampleOf(schema: Schema): unknown {
  const resolved = resolve(document, schema)
  if (Array.isArray(resolved.examples)) return resolved.examples[0]
  const item = resolved.type === 'array' ? exampleOf(resolved.items as Schema) : undefined
  return item === undefined ? undefined : [item]
}
