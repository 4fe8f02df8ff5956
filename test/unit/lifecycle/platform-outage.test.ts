import { expect, test } from 'vitest'
import { createPlatformOutage, platformTask } from '#lifecycle/attempt/platform-outage.ts'

const within = () => AbortSignal.timeout(1000)

test('an outage of a platform and its end are in the log once each, and due rows are postponed until then', async () => {
  const lines: string[] = []
  const note = (line: unknown) => void lines.push(String(line))
  let answers = 0
  let sentence: string | null = 'dockerd cannot be reached.'
  const outage = async () => {
    answers += 1
    return sentence
  }
  const platform = createPlatformOutage({ outage }, { info: note, warn: note } as never)
  let postponed = 0
  const where = async () => {
    postponed += 1
  }
  const db = { update: () => ({ set: () => ({ where }) }) }
  const task = platformTask({ db, platformOutage: platform, region: 'local', sandboxes: { name: 'docker' } } as never)
  await task.run(within())
  expect([answers, platform.isAway], 'it is not asked while it is there').toEqual([0, false])
  expect(await platform.probe(within())).toBe(true)
  await task.run(within())
  expect([answers, platform.isAway, postponed]).toEqual([2, true, 1])
  sentence = null
  await task.run(within())
  expect([platform.isAway, postponed]).toEqual([false, 1])
  expect(lines).toEqual([
    'the platform is unreachable, instances wait: dockerd cannot be reached.',
    'the platform is reachable again',
  ])
})

test('a platform that is this host is never away', async () => {
  expect(await createPlatformOutage({}, {} as never).probe(within())).toBe(false)
})
