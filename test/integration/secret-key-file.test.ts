import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { chmod, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { pino } from 'pino'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { findSignupToken } from '#api/organization/signup-token.ts'
import { rotateSecretKey } from '#commands/admin/rotate-secret-key.ts'
import { createHeartbeat } from '#composition/heartbeat.ts'
import { beginRotation, openVault } from '#composition/vault.ts'
import { findSecretKeys, writeKeyFile } from '#platform/secret-key.ts'
import { createVault, keyIdOf } from '#platform/secrets.ts'
import { removeDataDir, startChowder } from '../support/chowder-process.ts'
import { compiledOnce } from '../support/compile-cache.ts'
import { cloneDatabase, type TestDatabase } from '../support/test-database.ts'

const log = pino({ level: 'silent' })
const signal = new AbortController().signal
const program = fileURLToPath(import.meta.resolve('#commands/admin.ts'))

describe('a key in the data folder', () => {
  let database: TestDatabase
  let dataDir: string
  beforeEach(async () => {
    database = await cloneDatabase()
    dataDir = await mkdtemp(join(tmpdir(), 'chowder-key-'))
  })
  afterEach(async () => {
    await database.drop()
    await rm(dataDir, { recursive: true })
  })

  const open = () => openVault({ role: 'all', config: {} as never, dataDir, log, drain: null as never }, database.db)
  const keysInFile = async () => (await findSecretKeys({}, dataDir)).keys
  const rotate = async (waitMs = 5000) => {
    const secretKeys = () => findSecretKeys({}, dataDir)
    const result = await rotateSecretKey({ db: database.db, secretKeys, report: () => {} }, { waitMs, settleMs: 50 })
    return result.text
  }

  test('is exchanged by one command, while a process goes on that reads it again', async () => {
    const [old] = await keysInFile()
    const { vault, reread } = await open()
    const token = await findSignupToken(database.db, vault)
    const facts = {
      id: '00000000-0000-7000-8000-000000000001',
      role: 'all',
      regions: ['local/local'],
      version: '1',
      commit: '',
      host: 'a',
      pid: 1,
    }
    const seen: string[] = []
    const describe = async () => {
      await reread()
      const ids = vault.keyIds.join()
      if (seen.at(-1) !== ids) seen.push(ids)
      return { ...facts, secretKeyIds: [...vault.keyIds] }
    }
    const { task } = createHeartbeat(database.db, describe, log)
    await task.run(signal) // the command waits for processes that it knows of
    let isOver = false
    let lost = 0
    const beats = (async () => {
      while (!isOver) {
        await task.run(signal)
        if ((await findSignupToken(database.db, vault)) !== token) lost += 1
      }
    })()
    const said = await rotate()
    isOver = true
    await beats
    await task.run(signal)
    const [key, ...others] = await keysInFile()
    const [oldId, id] = [old, key].map((one) => one && keyIdOf(one))
    expect([others, lost, id === oldId]).toEqual([[], 0, false])
    expect(said).toContain(`The old key ${oldId} is removed from the data folder`)
    // It accepts a key before anything is sealed with it, and as long as anything is.
    expect(seen).toEqual([oldId, `${oldId},${id}`, `${id},${oldId}`, id])
    expect(await findSignupToken(database.db, (await open()).vault)).toBe(token)
  })

  test('stays as it is when a process does not get the new one, which the next run replaces', async () => {
    const [old] = await keysInFile()
    const { vault } = await open()
    const token = await findSignupToken(database.db, vault)
    await database.pool.query(
      `INSERT INTO processes (id, role, host, secret_key_ids) VALUES (gen_random_uuid(), 'api', 'elsewhere', $1)`,
      [vault.keyIds],
    )
    await expect(rotate(100)).rejects.toThrow(/do not accept the new secret key .*:\n {2}api on elsewhere/)
    const [first, second] = await keysInFile()
    expect([first, second?.length]).toEqual([old, 32])
    expect(await findSignupToken(database.db, (await open()).vault)).toBe(token)
    await database.pool.query('DELETE FROM processes')
    await rotate()
    const after = await keysInFile()
    expect([after.length, after[0]?.equals(old ?? Buffer.alloc(0)), second && after[0]?.equals(second)]).toEqual([
      1,
      false,
      false,
    ])
  })

  const former = randomBytes(32)
  const next = randomBytes(32)
  test.each([
    ['before it began', [former, next], false, false],
    ['before the keys were exchanged', [former, next], true, true],
    ['while it sealed', [next, former], true, true],
    ['before the old key was removed', [next, former], 'ended', false],
    ['that the operator began', [next, former], false, true],
  ] as const)('a rotation that was interrupted %s ends with one key', async (_, keys, begun, goesOn) => {
    await writeFile(join(dataDir, 'secret-key'), former.toString('base64'))
    const token = await findSignupToken(database.db, (await open()).vault)
    await writeKeyFile(join(dataDir, 'secret-key'), [next, former])
    if (begun === 'ended') await rotate().then(() => writeKeyFile(join(dataDir, 'secret-key'), [next, former]))
    else if (begun) await beginRotation(database.db, createVault([next, former]))
    await writeKeyFile(join(dataDir, 'secret-key'), keys)
    await open()
    await rotate()
    const [key, ...others] = await keysInFile()
    expect([others, key && goesOn === key.equals(next)]).toEqual([[], true])
    expect(await findSignupToken(database.db, (await open()).vault)).toBe(token)
    await writeFile(join(dataDir, 'secret-key'), former.toString('base64'))
    await expect(open()).rejects.toThrow('not the one')
  })

  test('a file that is damaged, or has a wrong key, while a process runs changes nothing for it', async () => {
    const { vault, reread } = await open()
    const before = vault.keyIds
    await writeKeyFile(join(dataDir, 'secret-key'), [randomBytes(32)])
    await expect(reread()).rejects.toThrow('not the one')
    expect(vault.keyIds).toEqual(before)
    await writeFile(join(dataDir, 'secret-key'), 'canary')
    await expect(reread()).rejects.toThrow('does not hold')
    expect(vault.keyIds).toEqual(before)
  })
})

test('npm start: one command, beside a Chowder that runs and goes on', {
  timeout: 180_000,
  tags: ['long'],
}, async () => {
  const dataDir = await mkdtemp(join(tmpdir(), 'chowder-rotation-'))
  await chmod(dataDir, 0o711)
  const chowder = await startChowder({ dataDir })
  try {
    const key = () => readFile(join(dataDir, 'secret-key'), 'utf8')
    const call = (path: string, options: RequestInit = {}) => fetch(chowder.url + path, options)
    const signup = await call('/v1/organization/signup', {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: '{"name":"Acme"}',
    })
    const headers = {
      authorization: `Bearer ${((await signup.json()) as { api_key: string }).api_key}`,
      'content-type': 'application/json',
    }
    const body = JSON.stringify({ model_api_keys: { anthropic: 'sk-ant-test' } })
    expect((await call('/v1/organization', { method: 'PATCH', headers, body })).status).toBe(200)
    const old = await key()
    const { stdout, stderr } = await promisify(execFile)(process.execPath, [program, 'rotate-secret-key'], {
      env: { ...compiledOnce, CHOWDER_DATA_DIR: dataDir, PATH: process.env.PATH ?? '' },
    })
    expect([stdout, stderr]).toEqual([expect.stringContaining('is removed'), expect.stringContaining('provider_keys')])
    expect(await key()).not.toBe(old)
    // The same key again changes nothing: it was unsealed, and found equal.
    const again = await (await call('/v1/organization', { method: 'PATCH', headers, body })).json()
    const read = await (await call('/v1/organization', { headers })).json()
    expect(again).toEqual(read)
    expect(chowder.output()).not.toContain('cannot be unsealed')
  } finally {
    await chowder.kill('SIGTERM')
    await removeDataDir(dataDir)
  }
})
