import { DrizzleQueryError } from 'drizzle-orm'
import { pino } from 'pino'
import { expect, test } from 'vitest'
import { logSerializers } from '#platform/log.ts'

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
