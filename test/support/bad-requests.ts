import fc from 'fast-check'
import type { ApiDocument } from '#http/openapi.ts'
import { type DocumentedOperation, type DocumentedRequest, requestOf, resolve, type Schema } from './operations.ts'

export interface BadRequest extends Omit<DocumentedRequest, 'payload'> {
  operation: string
  /** The change that made the request bad. */
  mutation: string
  payload?: string | Buffer
}

/** Fields that only the server sets. */
export const notTheirs = ['organization_id', 'status', 'tier', 'sandbox_id', 'gateway_url', 'created_at']

const nul = '\u0000'

const hostileText = fc.oneof(
  fc.constantFrom(
    '',
    ' ',
    nul,
    `a${nul}b`,
    '\u202e\u2066',
    '\ufeff',
    '\ufffd',
    '👩‍👩‍👧‍👦',
    '__proto__',
    'constructor',
    'toString',
    '../../../../etc/passwd',
    '/etc/passwd',
    'a/../../b',
    'C:\\windows',
    'a\r\nx-injected: 1',
    "'; DROP TABLE instances; --",
    '$(reboot)',
    '#{7*7}',
    '%s%n',
    '-rf',
    '2026-13-45T99:99:99Z',
    'null',
    'NaN',
    '1e999',
    '00000000-0000-0000-0000-000000000000',
  ),
  fc.string({ unit: 'binary', maxLength: 64 }),
  fc.nat({ max: 20_000 }).map((length) => 'x'.repeat(length)),
)

/** JSON texts, also those that `JSON.stringify` never writes. */
const hostileJson = fc.oneof(
  hostileText.map((text) => JSON.stringify(text)),
  fc.constantFrom('"\\ud800"', '"\\udc00x"', '"ok \\ud83d"', '"\\u0000"'),
  fc.constantFrom('null', 'true', 'false', '0', '-0', '-1', '1.5', '1e308', '1e999', '-1e999', '1e-999'),
  fc.nat({ max: 5000 }).map((digits) => `1${'0'.repeat(digits)}`),
  fc.constantFrom('[]', '{}', '[[]]', '[null]', '{"__proto__":{"admin":true}}', '{"constructor":{"prototype":{}}}'),
  fc.json({ maxDepth: 4 }),
  fc.nat({ max: 20_000 }).map((depth) => '['.repeat(depth) + ']'.repeat(depth)),
  fc.nat({ max: 20_000 }).map((depth) => `${'{"a":'.repeat(depth)}1${'}'.repeat(depth)}`),
  fc.nat({ max: 5000 }).map((length) => `[${Array(length).fill('"a"').join()}]`),
  fc.nat({ max: 5000 }).map((length) => `{${Array.from({ length }, (_, at) => `"k${at}":"v"`).join()}}`),
)

const hostileName = fc.oneof(
  fc.constantFrom(...notTheirs, '__proto__', 'constructor', 'prototype', 'toString', '', nul, '$ref', 'a.b', '\\ud800'),
  fc.string({ unit: 'binary', maxLength: 32 }),
)

const contentTypes = fc.constantFrom(
  'text/plain',
  'application/xml',
  'application/x-www-form-urlencoded',
  'multipart/form-data',
  'multipart/form-data; boundary=x',
  'application/json; charset=utf-16',
  'application/json;;;',
  'APPLICATION/JSON',
  'application/vnd.api+json',
  'json',
  '/',
  ',',
  `application/json; ${'x'.repeat(2000)}`,
)

const rawBodies = fc.oneof(
  fc.constantFrom(
    '',
    ' ',
    '{',
    '}',
    '[',
    '"',
    'undefined',
    '{"a":}',
    "{'a':1}",
    '{"a":1,}',
    '{}{}',
    '//',
    '\ufeff{}',
    nul,
  ),
  fc.uint8Array({ maxLength: 200 }).map((bytes) => Buffer.from(bytes)),
  fc.constantFrom(
    Buffer.from([0x22, 0xff, 0xfe, 0x22]),
    Buffer.from('{"name":"\xc3\x28"}', 'latin1'),
    Buffer.from('{"name":"a"}', 'utf16le'),
    Buffer.from('{"name":"\xed\xa0\x80"}', 'latin1'),
  ),
  fc.nat({ max: 200_000 }).map((depth) => '['.repeat(depth)),
  fc.nat({ max: 200_000 }).map((depth) => '{"a":'.repeat(depth)),
  hostileJson,
)

const encodings = [
  encodeURIComponent,
  (text: string) => encodeURIComponent(text).replaceAll('%', '%25'),
  (text: string) => encodeURIComponent(text).toLowerCase(),
]
const inUrl = fc.oneof(
  fc
    .tuple(hostileText, fc.constantFrom(...encodings))
    .map(([text, encode]) => encode(text.toWellFormed()).slice(0, 6000)),
  fc.constantFrom(
    '%',
    '%zz',
    '%ff',
    '%c3%28',
    '%ed%a0%80',
    '%00',
    '..%2f..%2f',
    '%2e%2e',
    '%2e',
    '.',
    ';',
    '%0d%0a',
    '%23',
  ),
)

const headerNames = [
  'idempotency-key',
  'range',
  'if-none-match',
  'if-range',
  'accept',
  'x-request-id',
  'origin',
  'x-forwarded-for',
] as const
const inHeader = fc.oneof(
  fc.constantFrom(
    '',
    'bytes=0-',
    'bytes=-1',
    'bytes=9-1',
    'bytes=0-0,2-3',
    'bytes=1e9-',
    '*',
    '"',
    'W/"',
    '../..',
    '{}',
    '-1',
  ),
  fc.string({ unit: 'binary-ascii', maxLength: 400 }).map((text) => text.replace(/[^\x20-\x7e]/g, '')),
)

type Json = null | boolean | number | string | Json[] | { [key: string]: Json }

const marker = '@@hostile@@'

/** The paths of values in a body: those of its example, and the others of its schema. */
function placesIn(document: ApiDocument, schema: Schema, example: Json): string[][] {
  const places: string[][] = [[]]
  const properties = (resolve(document, schema).properties ?? {}) as Record<string, Schema>
  const names = new Set([...Object.keys(properties), ...(isRecord(example) ? Object.keys(example) : [])])
  for (const name of names) {
    const below = isRecord(example) ? (example[name] ?? null) : null
    places.push(...placesIn(document, properties[name] ?? {}, below).map((place) => [name, ...place]))
  }
  return places
}

const isRecord = (value: Json): value is { [key: string]: Json } =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

function withMarker(body: Json, [name, ...rest]: string[]): Json {
  if (name === undefined) return marker
  return { ...(isRecord(body) ? body : {}), [name]: withMarker(isRecord(body) ? (body[name] ?? null) : null, rest) }
}

const write = (body: Json, hostile: string) => JSON.stringify(body).replace(JSON.stringify(marker), () => hostile)

/** Bad requests for one operation: its good request with one fault. */
function badRequestsFor(
  document: ApiDocument,
  documented: DocumentedOperation,
  values: Record<string, string>,
): fc.Arbitrary<BadRequest> {
  const good = requestOf(documented, values)
  const { name, path, operation } = documented
  const made = (mutation: string, change: Partial<BadRequest>): BadRequest => ({
    ...good,
    ...change,
    operation: name,
    mutation,
  })
  const addQuery = (text: string) => `${good.url}${good.url.includes('?') ? '&' : '?'}${text}`
  const kinds: fc.Arbitrary<BadRequest>[] = [
    inUrl.map((text) => made('an unknown query parameter', { url: addQuery(`unknown=${text}`) })),
    fc
      .tuple(fc.constantFrom(...headerNames), inHeader)
      .map(([header, value]) => made(`header ${header}`, { headers: { ...good.headers, [header]: value } })),
  ]
  for (const parameter of path.match(/\{\w+\}/g) ?? []) {
    kinds.push(
      inUrl.map((text) => {
        const filled = requestOf(documented, { ...values, [parameter.slice(1, -1)]: marker })
        return made(`path ${parameter}`, { url: filled.url.replace(encodeURIComponent(marker), () => text) })
      }),
    )
  }
  for (const { in: place, name: parameter } of operation.parameters ?? []) {
    if (place !== 'query') continue
    kinds.push(
      inUrl.map((text) => made(`query ${parameter}`, { url: addQuery(`${parameter}=${text}`) })),
      inUrl.map((text) =>
        made(`query ${parameter}`, {
          url: `${path.replace(/\{(\w+)\}/g, (_, at) => values[at] ?? '')}?${parameter}=${text}`,
        }),
      ),
      fc
        .constantFrom(...['[]', '[a]', '[__proto__]'])
        .map((more) => made(`query ${parameter}`, { url: addQuery(`${parameter}${more}=1`) })),
    )
  }
  const [media] = Object.entries(operation.requestBody?.content ?? {})
  if (media?.[0] === 'application/json' && good.payload !== undefined) {
    const example = JSON.parse(good.payload) as Json
    const places = fc.constantFrom(...placesIn(document, media[1].schema, example))
    const json = (mutation: string, payload: string) => made(mutation, { payload })
    kinds.push(
      // Most possible faults are in the fields.
      ...Array.from({ length: 6 }, () =>
        fc
          .tuple(places, hostileJson)
          .map(([place, hostile]) => json(`body ${place.join('.')}`, write(withMarker(example, place), hostile))),
      ),
      fc
        .tuple(places, hostileName, hostileJson)
        .map(([place, field, hostile]) =>
          json('an unknown field', write(withMarker(example, [...place, field]), hostile)),
        ),
      fc
        .tuple(fc.constantFrom(...notTheirs), hostileJson)
        .map(([field, hostile]) => json('a field that is not theirs', write(withMarker(example, [field]), hostile))),
      fc
        .constantFrom(...Object.keys(isRecord(example) ? example : { none: 1 }))
        .map((field) =>
          json(`without ${field}`, JSON.stringify({ ...(isRecord(example) ? example : {}), [field]: undefined })),
        ),
      fc
        .tuple(fc.constantFrom(...Object.keys(isRecord(example) ? example : {}), '__proto__'), hostileJson)
        .map(([field, hostile]) => json('a field twice', `${good.payload?.slice(0, -1)},"${field}":${hostile}}`)),
    )
  }
  if (good.method !== 'GET') {
    kinds.push(
      rawBodies.map((payload) =>
        made('another body', { payload, headers: { 'content-type': 'application/json', ...good.headers } }),
      ),
      contentTypes.map((type) =>
        made('another content type', { payload: good.payload ?? '{}', headers: { 'content-type': type } }),
      ),
    )
  }
  return fc.oneof(...kinds)
}

/** Bad requests for all operations, evenly. */
export const badRequests = (
  document: ApiDocument,
  operations: readonly DocumentedOperation[],
  valuesFor: (operation: DocumentedOperation) => Record<string, string>,
): fc.Arbitrary<BadRequest> =>
  fc.oneof(...operations.map((operation) => badRequestsFor(document, operation, valuesFor(operation))))

/** JSON texts of about so many bytes that are costly in some way: to read, to build, to check or to write. */
const largeJson = (bytes: number): fc.Arbitrary<string> => {
  const times = (text: string) => Math.max(1, Math.floor(bytes / Buffer.byteLength(text)))
  const text = fc
    .constantFrom('x', ' ', '\\n', '\\u0000', '\\"', '\\u6f22', '漢', '🥣', 'a-', '{\\"a\\":[')
    .map((piece) => `"${piece.repeat(times(piece))}"`)
  const item = fc.constantFrom('1', '-1.5e300', 'null', '{}', '[]', '""', '"a"', '{"a":1}', '{"type":"x"}', '[[[[]]]]')
  const items = fc.tuple(item, fc.constantFrom(49_000, 1_000_000)).map(
    ([one, most]) =>
      `[${Array(Math.max(1, Math.min(most, times(`${one},`))))
        .fill(one)
        .join()}]`,
  )
  const keys = fc.tuple(fc.constantFrom(1, 10, 400), item).map(([length, value]) => {
    const fields = Math.min(49_000, times(`${'k'.repeat(length)}00000:${value},`))
    return `{${Array.from({ length: fields }, (_, at) => `"${'k'.repeat(length)}${at}":${value}`).join()}}`
  })
  const repeated = item.map(
    (value) =>
      `{${Array(times(`"a":${value},`))
        .fill(`"a":${value}`)
        .join()}}`,
  )
  const deep = fc.tuple(fc.constantFrom('[]', '{}'), fc.constantFrom(150, 1_000_000)).map(([kind, most]) => {
    const [open, close] = kind === '[]' ? ['[', ']'] : ['{"a":', '}']
    const depth = Math.min(most, times(open + close))
    const one = open.repeat(depth) + (kind === '[]' ? '' : '1') + close.repeat(depth)
    return `[${Array(Math.min(300, times(`${one},`)))
      .fill(one)
      .join()}]`
  })
  return fc.oneof(text, items, keys, repeated, deep)
}

/** Requests with a JSON body of about as many bytes as `limitOf` says for it, at one place of the good body. */
export const largeRequests = (
  document: ApiDocument,
  operations: readonly DocumentedOperation[],
  valuesFor: (operation: DocumentedOperation) => Record<string, string>,
  limitOf: (operation: DocumentedOperation) => number,
): fc.Arbitrary<BadRequest> =>
  fc.oneof(
    ...operations.flatMap((documented) => {
      const media = documented.operation.requestBody?.content['application/json']
      const good = requestOf(documented, valuesFor(documented))
      if (!media || good.payload === undefined) return []
      const example = JSON.parse(good.payload) as Json
      const places = placesIn(document, media.schema, example)
      return fc
        .tuple(fc.constantFrom(...places, ['unknown']), largeJson(limitOf(documented) - good.payload.length - 64))
        .map(([place, hostile]): BadRequest => {
          const payload = Buffer.from(write(withMarker(example, place), hostile))
          const headers = { 'content-type': 'application/json', ...good.headers }
          const mutation = `body ${place.join('.')}: ${hostile.slice(0, 24)}… of ${payload.length} bytes`
          const shown = { [fc.toStringMethod]: () => `${documented.name}, ${mutation}` } // the report would have the body
          return { ...good, headers, operation: documented.name, mutation, payload, ...shown }
        })
    }),
  )
