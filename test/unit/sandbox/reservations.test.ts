import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { createReservations } from '#sandbox/local/reservations.ts'

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'chowder-reservations-'))
})
afterEach(async () => {
  await rm(folder, { recursive: true })
})

describe('S21: the user ids of sandboxes', () => {
  const range = { first: 20_000, last: 20_004 }
  const open = () => createReservations(join(folder, 'uids'), range, 'user id', join(folder, 'last-uid'))
  const usedBy = async (id: string) => {
    const uids = open() // as after a restart
    const number = await uids.take(id, () => true)
    await uids.free(number)
    return number
  }

  test('are not given to another sandbox before the range is through', async () => {
    const numbers: number[] = []
    for (let round = 0; round < 10; round += 1) numbers.push(await usedBy(`sandbox-${round}`))
    expect(new Set(numbers.slice(0, 5)).size).toBe(5)
    expect(numbers.slice(5)).toEqual(numbers.slice(0, 5))
  })

  test('are skipped while they are held or not suitable, also by many at once', async () => {
    const uids = open()
    const taken = await Promise.all(['a', 'b', 'c', 'd'].map((id) => uids.take(id, (uid) => uid !== 20_002)))
    expect(taken.sort()).toEqual([20_000, 20_001, 20_003, 20_004])
    await expect(uids.take('e', (uid) => uid !== 20_002)).rejects.toThrow('every user id from 20000 to 20004 is taken')
  })
})
