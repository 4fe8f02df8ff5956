import { execFile } from 'node:child_process'
import { chmod, mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { afterEach, describe, expect, test } from 'vitest'
import { findSignupToken, renewSignupToken, signupTokenName } from '#api/organization/signup-token.ts'
import { examine } from '#commands/doctor/examine.ts'
import { readValue, storeValue } from '#database/installation.ts'
import { loadConfig } from '#settings/config.ts'
import { api } from '../../support/api-client.ts'
import { removeDataDir, startChowder } from '../../support/chowder-process.ts'
import { compiledOnce } from '../../support/compile-cache.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { openTestChowder, type TestChowder, type TestChowderOptions } from '../../support/test-chowder.ts'

const undo: (() => Promise<unknown>)[] = []
afterEach(async () => {
  for (const act of undo.splice(0)) await act()
})

async function open(options: Partial<TestChowderOptions>): Promise<TestChowder> {
  const chowder = await openTestChowder({ sandboxes: new FakeDriver(), ...options })
  undo.push(() => chowder.close())
  return chowder
}

async function signUp(chowder: TestChowder, token?: string, body: unknown = { name: 'Acme' }) {
  const headers = token === undefined ? {} : { 'x-signup-token': token }
  const answer = await chowder.call('POST', '/v1/organization/signup', { headers, body })
  return [answer.status, answer.body.error?.code]
}

const refused = [401, 'invalid_signup_token']
const created = [201, undefined]

describe('A14: SIGNUP=token', () => {
  test('lets those in who have the token, and tells others who has it', async () => {
    const chowder = await open({ signup: 'token' })
    const { db } = chowder.deps
    const token = await findSignupToken(db, chowder.vault)
    expect(token).toMatch(/^chd_signup_[0-9a-f]{64}$/)
    expect(await signUp(chowder)).toEqual(refused)
    for (const wrong of ['', 'x', token.slice(0, -1), `${token}0`, token.toUpperCase(), `${token}, ${token}`]) {
      expect([wrong, ...(await signUp(chowder, wrong))]).toEqual([wrong, ...refused])
    }
    const { body } = await chowder.call('POST', '/v1/organization/signup', { body: { name: 'Acme' } })
    expect(body.detail).toContain('npm run admin -- signup-token')
    expect(await signUp(chowder, token)).toEqual(created)
    expect(await findSignupToken(db, chowder.vault)).toBe(token)
  })

  test('keeps the token sealed, and out of the log', async () => {
    const chowder = await open({ signup: 'token' })
    const token = await findSignupToken(chowder.deps.db, chowder.vault)
    await signUp(chowder, token)
    const stored = await readValue(chowder.deps.db, signupTokenName)
    expect(stored).toMatch(/^v1\./)
    expect([stored, ...chowder.logged].join('\n')).not.toContain(token.slice(-32))
  })

  test('a new token ends the one before, and a damaged one is found', async () => {
    const chowder = await open({ signup: 'token' })
    const { db } = chowder.deps
    const before = await findSignupToken(db, chowder.vault)
    const token = await renewSignupToken(db, chowder.vault)
    expect(await signUp(chowder, before)).toEqual(refused)
    expect(await signUp(chowder, token)).toEqual(created)

    const look = async () =>
      (
        await examine({
          config: loadConfig({}),
          db,
          regions: [chowder.deps],
          vault: chowder.vault,
          queue: chowder.queue,
        })
      ).filter(({ area }) => area === 'access')
    expect(await look()).toEqual([])
    await storeValue(db, signupTokenName, 'damaged')
    expect(await look()).toMatchObject([{ what: expect.stringContaining('cannot be unsealed') }])
  })

  test('guesses are limited by address, and their bodies are not read', async () => {
    const chowder = await open({ signup: 'token', limits: { failedAuthPerMinute: 2 } })
    expect(await signUp(chowder, 'x', { name: 'x'.repeat(2 * 1024 * 1024) })).toEqual(refused)
    expect(await signUp(chowder, 'x')).toEqual(refused)
    expect(await signUp(chowder, 'x')).toEqual([429, 'rate_limited'])
    expect(await signUp(chowder, await findSignupToken(chowder.deps.db, chowder.vault))).toEqual(created)
  })

  test('the operator gets the token from a command, and nothing else shows it', { timeout: 120_000 }, async () => {
    const dataDir = await mkdtemp(join(tmpdir(), 'chowder-signup-'))
    await chmod(dataDir, 0o711)
    undo.push(() => removeDataDir(dataDir))
    const chowder = await startChowder({ dataDir, role: 'api', env: { SIGNUP: 'token' } })
    undo.unshift(() => chowder.kill('SIGTERM'))
    const program = fileURLToPath(import.meta.resolve('#commands/admin.ts'))
    const admin = async (...args: string[]) => {
      const env = { ...compiledOnce, PATH: process.env.PATH, HOME: dataDir, CHOWDER_DATA_DIR: dataDir }
      return (await promisify(execFile)(process.execPath, [program, ...args], { env, timeout: 60_000 })).stdout.trim()
    }
    const token = await admin('signup-token')
    const post = async (sent?: string) =>
      (await api(chowder.url, undefined, sent).post('/v1/organization/signup', { name: 'Acme' })).status
    expect([await post(), await post(token)]).toEqual([401, 201])
    const next = JSON.parse(await admin('signup-token', '--new', '--json')).signup_token
    expect([await post(token), await post(next)]).toEqual([401, 201])
    expect(chowder.output()).toContain('npm run admin -- signup-token')
    for (const secret of [token, next]) expect(chowder.output()).not.toContain(secret)
  })
})

test('there is one organization where agents are not isolated from each other', async () => {
  const sandboxes = new FakeDriver()
  sandboxes.isForOneOrganization = true
  const chowder = await open({ sandboxes })
  const answers = await Promise.all(Array.from({ length: 5 }, () => signUp(chowder)))
  expect(answers.filter(([status]) => status === 201)).toHaveLength(1)
  expect(answers.filter(([, code]) => code === 'signup_closed')).toHaveLength(4)
  sandboxes.isForOneOrganization = false
  const shared = await open({ sandboxes })
  expect([await signUp(shared), await signUp(shared)]).toEqual([created, created])
})

test('A14: SIGNUP=closed lets nobody in, and says who creates organizations', async () => {
  const chowder = await open({ signup: 'closed' })
  const token = await findSignupToken(chowder.deps.db, chowder.vault)
  expect(await signUp(chowder)).toEqual([403, 'signup_closed'])
  expect(await signUp(chowder, token)).toEqual([403, 'signup_closed'])
  const { body } = await chowder.call('POST', '/v1/organization/signup', { body: { name: 'Acme' } })
  expect(body.detail).toContain('npm run admin -- create-org')
})

test('SIGNUP=open asks for no token, and takes one that is sent', async () => {
  const chowder = await open({ signup: 'open' })
  expect([await signUp(chowder), await signUp(chowder, 'x')]).toEqual([created, created])
})
