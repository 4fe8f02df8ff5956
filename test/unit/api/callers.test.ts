import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { createCallers } from '#api/keys/callers.ts'
import type { Db } from '#database/client.ts'

// Results are cached for less than a second, and the test must not depend on its own speed.
beforeEach(() => void vi.useFakeTimers({ toFake: ['performance'] }))
afterEach(() => void vi.useRealTimers())

test('S17: unknown keys do not push good ones out of the cache', async () => {
  const row = {
    keyId: 'k',
    organizationId: 'o',
    permissions: null,
    instanceIds: null,
    isSuspended: false,
    msLeft: null,
  }
  let queries = 0
  const good = Buffer.alloc(32, 1).toString('base64')
  let found: object[] = [{ ...row, keyHash: Buffer.from(good, 'base64'), isUseDue: false }]
  const where = async () => {
    queries += 1
    return found
  }
  const fakeDb = { select: () => ({ from: () => ({ innerJoin: () => ({ where }) }) }) } as unknown as Db
  const callers = createCallers(fakeDb, { warn: () => {} })
  expect(await callers.find(good)).toMatchObject({ organizationId: 'o' })
  found = []
  for (let guess = 0; guess < 10_001; guess += 1) expect(await callers.find(`guess-${guess}`)).toBeNull()
  expect(await callers.find('guess-10000')).toBeNull()
  expect(await callers.find(good)).toMatchObject({ organizationId: 'o' })
  expect(queries).toBe(10_002)
  callers.forget(Buffer.from(good, 'base64'))
  expect(await callers.find(good)).toBeNull()
  await callers.close()
})

test('R10: the keys of all open connections are looked up in one query', async () => {
  const row = { organizationId: 'o', permissions: null, instanceIds: null, isSuspended: false, msLeft: null }
  const hashes = Array.from({ length: 400 }, (_, index) => Buffer.alloc(32, `key ${index}`).toString('base64'))
  let queries = 0
  const where = async () => {
    queries += 1
    return hashes.map((hash) => ({ ...row, keyId: hash, keyHash: Buffer.from(hash, 'base64'), isUseDue: false }))
  }
  const fakeDb = { select: () => ({ from: () => ({ innerJoin: () => ({ where }) }) }) } as unknown as Db
  const callers = createCallers(fakeDb, { warn: () => {} })
  const found = await Promise.all(hashes.map((hash) => callers.find(hash)))
  expect(found.map((caller) => caller?.keyId)).toEqual(hashes)
  expect(queries).toBe(1)
  await callers.close()
})
