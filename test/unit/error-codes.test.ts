import { globSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import fastify from 'fastify'
import { expect, test } from 'vitest'
import { useErrors } from '#http/errors.ts'
import { type ErrorCode, errorCodes } from '#platform/error-codes.ts'
import { AppError } from '#platform/errors.ts'

const root = join(import.meta.dirname, '../../src')
const sources = globSync('**/*.ts', { cwd: root })
  .filter((path) => !path.startsWith('platform/error-codes'))
  .map((path) => ({ path, text: readFileSync(join(root, path), 'utf8') }))
const codes = Object.keys(errorCodes) as ErrorCode[]

/** The codes that stand for a whole kind: for refusals of Fastify, whose reason is in their message only. */
const general = codes.filter((code) => code === errorCodes[code].kind)

test('every other code is used', () => {
  const used = new Set(sources.flatMap(({ text }) => [...text.matchAll(/'(\w+)'/g)].map(([, word]) => word)))
  expect(codes.filter((code) => !general.includes(code) && !used.has(code))).toEqual([])
})

test('no error has the code of its kind where others of the kind say more', () => {
  const vague = general.filter((code) => codes.filter((other) => errorCodes[other].kind === code).length > 1)
  const sayAll = [
    'no_space',
    'timed_out',
    'rate_limited',
    'gateway_unreachable',
    'gateway_timeout',
    'unsupported_media',
  ]
  const refused = vague.filter((code) => !sayAll.includes(code)).join('|')
  const thrown = new RegExp(`new AppError\\(\\s*'(${refused})'`)
  expect(sources.filter(({ text }) => thrown.test(text)).map(({ path }) => path)).toEqual([])
})

test('every explanation is a sentence, and says what to do and whether to repeat', () => {
  for (const code of codes) {
    expect(code).toMatch(/^[a-z]+(_[a-z]+)*$/)
    const { meaning, remedy, repeat, status } = errorCodes[code]
    for (const text of [meaning, remedy, repeat]) expect(text, code).toMatch(/^[A-Z`].+\.$/)
    expect(status, code).toBeGreaterThanOrEqual(400)
  }
})

test('every 429 and 503 says when to repeat the call', async () => {
  const app = fastify()
  useErrors(app, () => '')
  app.get('/:code', async ({ params }) => {
    throw new AppError((params as { code: ErrorCode }).code, 'x')
  })
  for (const code of codes) {
    const { status } = errorCodes[code]
    const { headers } = await app.inject(`/${code}`)
    expect([code, headers['retry-after']]).toEqual([code, status === 429 || status === 503 ? '1' : undefined])
  }
})
