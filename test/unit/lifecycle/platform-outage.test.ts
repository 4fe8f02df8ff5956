import { expect, test } from 'vitest'
import { createPlatformOutage } from '#lifecycle/attempt/platform-outage.ts'

const within = () => AbortSignal.timeout(1000)

test('an outage of a platform is in the log once, and so is its end, which the periodic probe finds', async () => {
  const lines: string[] = []
  const note = (line: unknown) => void lines.push(String(line))
  let answers = 0
  let sentence: string | null = 'dockerd cannot be reached.'
  const outage = async () => {
    answers += 1
    return sentence
  }
  const platform = createPlatformOutage({ outage }, { info: note, warn: note } as never)
  await platform.task.run(within())
  expect([answers, platform.isAway], 'it is not asked while it is there').toEqual([0, false])
  expect(await platform.probe(within())).toBe(true)
  await platform.task.run(within())
  expect([answers, platform.isAway]).toEqual([2, true])
  sentence = null
  await platform.task.run(within())
  expect(platform.isAway).toBe(false)
  expect(lines).toEqual([
    'the platform is unreachable, instances wait: dockerd cannot be reached.',
    'the platform is reachable again',
  ])
})

test('a platform that is this host is never away', async () => {
  expect(await createPlatformOutage({}, {} as never).probe(within())).toBe(false)
})
