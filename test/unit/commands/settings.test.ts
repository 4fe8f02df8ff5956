import { expect, test } from 'vitest'
import { settingsFiles } from '#commands/settings.ts'
import { Env } from '#settings/env.ts'

test.each(settingsFiles())(
  '$file has the settings of the schema; run `npm run settings` and review what changed',
  ({ current, expected }) => {
    expect(current).toBe(expected)
  },
)

test('each setting has a description', () => {
  expect(Object.entries(Env.properties).filter(([, { description }]) => !description)).toEqual([])
})
