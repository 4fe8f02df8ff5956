import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest'
import { createReservations, unusedUids } from '#sandbox/local/reservations.ts'

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'chowder-reservations-'))
})
afterEach(async () => {
  vi.unstubAllEnvs()
  await rm(folder, { recursive: true })
})

describe('S21: the user ids of sandboxes', () => {
  const range = { first: 20_000, last: 20_004 }
  const open = (of = range) => createReservations(join(folder, 'uids'), of, 'user id', join(folder, 'last-uid'))
  const usedBy = async (id: string, of = range) => {
    const uids = open(of) // as after a restart
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

  test('begin anew in a range that the setting has moved', async () => {
    await usedBy('a')
    expect(await usedBy('b', { first: 500_000, last: 500_004 })).toBe(500_000)
  })
})

describe('S21: a user id that a directory service has', () => {
  /** Answers as `getent` does on a machine with LDAP, which lists no users and knows them by their numbers. */
  async function fakeGetent(script: string): Promise<void> {
    const path = join(folder, 'getent')
    await writeFile(path, `#!/bin/sh\n${script}\n`)
    await chmod(path, 0o755)
    vi.stubEnv('PATH', `${folder}:${process.env.PATH}`)
  }

  test.each(['passwd', 'group'])('is no sandbox’s: %s', async (database) => {
    await fakeGetent(`[ "$1 $2" = "${database} 20005" ] && echo "ann:x:20005:" || exit 2`)
    const isUnused = await unusedUids()
    expect([await isUnused(20_005), await isUnused(20_006)]).toEqual([false, true])
  })

  test('is not assumed to be free when nobody can tell', async () => {
    await fakeGetent('exit 3')
    await expect((await unusedUids())(20_005)).rejects.toThrow('getent')
  })
})
