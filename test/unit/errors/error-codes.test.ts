import { globSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import fastify from 'fastify'
import { expect, test } from 'vitest'
import { AppError } from '#errors/app-error.ts'
import { type ErrorCode, errorCodes } from '#errors/codes.ts'
import { useErrors } from '#http/errors.ts'

const root = join(import.meta.dirname, '../../../src')
const sources = globSync('**/*.ts', { cwd: root })
  .filter((path) => !path.startsWith('errors/codes'))
  .map((path) => ({ path, text: readFileSync(join(root, path), 'utf8') }))
const codes = Object.keys(errorCodes) as ErrorCode[]

/** The codes for refusals of Fastify, of OpenClaw and for bugs, whose reason is not ours. */
const general = ['invalid', 'unprocessable', 'internal', 'method_not_allowed', 'headers_too_large']

test('every other code is used', () => {
  const used = new Set(sources.flatMap(({ text }) => [...text.matchAll(/'(\w+)'/g)].map(([, word]) => word)))
  expect(codes.filter((code) => !general.includes(code) && !used.has(code))).toEqual([])
})

test('no error has a general code: others say more', () => {
  const thrown = new RegExp(`new AppError\\(\\s*'(${general.join('|')})'`)
  expect(sources.filter(({ text }) => thrown.test(text)).map(({ path }) => path)).toEqual([])
})

test('every explanation is a sentence, and says what to do', () => {
  for (const code of codes) {
    expect(code).toMatch(/^[a-z]+(_[a-z]+)*$/)
    const { meaning, remedy, status } = errorCodes[code]
    for (const text of [meaning, remedy]) expect(text, code).toMatch(/^[A-Z`].+\.$/)
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
