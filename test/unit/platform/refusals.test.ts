import { expect, test } from 'vitest'
import { createRefusals } from '#platform/throttle.ts'

test('a hundred tokens are refused a second, and those that would wait for longer not at all', async () => {
  const refusals = createRefusals()
  const from = performance.now()
  const answers = await Promise.all(Array.from({ length: 150 }, () => refusals.wait()))
  const refused = answers.filter(Boolean).length
  expect(performance.now() - from).toBeGreaterThan(990)
  expect(refused).toBeGreaterThan(100)
  expect(refused).toBeLessThan(110)
  expect(await refusals.wait()).toBe(true)
})
