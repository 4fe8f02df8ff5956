import { DrizzleQueryError } from 'drizzle-orm'
import { pino } from 'pino'
import { expect, test } from 'vitest'
import { logSerializers, redactedFields } from '#platform/log.ts'

test('the log has the text and the cause of a failed statement, and not its parameters', () => {
  const lines: string[] = []
  const log = pino({ serializers: logSerializers }, { write: (line: string) => void lines.push(line) })
  const cause = new Error('relation "x" does not exist')
  const failed = new DrizzleQueryError('select $1', ['canary-1', 'canary\n-2'], cause)
  log.error({ err: failed }, 'failed')
  log.error({ err: new Error('outer', { cause: failed }) }, 'failed')
  expect(lines.join('')).not.toContain('canary')
  expect(lines[0]).toContain('select $1')
  expect(lines[0]).toContain('does not exist')
})

test('the log has no secret of the headers that libraries log', () => {
  const lines: string[] = []
  const log = pino({ redact: redactedFields }, { write: (line: string) => void lines.push(line) })
  const headers = { host: 'localhost', authorization: 'Bearer canary-1', 'x-signup-token': 'canary-2' }
  for (const fields of [{ headers }, { req: { headers } }, { busboyOptions: { headers } }]) log.info(fields)
  expect(lines.join('')).not.toContain('canary')
  expect(lines.join('').split('localhost')).toHaveLength(4)
})
