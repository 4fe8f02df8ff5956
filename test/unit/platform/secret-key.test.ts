import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { findSecretKeys, readSecretKeys } from '#platform/secret-key.ts'

const [first, second, third] = [1, 2, 3].map((n) => Buffer.alloc(32, n).toString('base64')) as [string, string, string]
const decoded = (...keys: string[]) => keys.map((key) => Buffer.from(key, 'base64'))

let folder: string
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'chowder-keys-'))
})
afterAll(() => rmSync(folder, { recursive: true }))

test.each([',', ' ', '\n', ' , \r\n'])('a setting has one key, or two that %j separates', async (separator) => {
  expect(await findSecretKeys(`${first}${separator}${second}`, folder)).toEqual(decoded(first, second))
  expect(await findSecretKeys(first, folder)).toEqual(decoded(first))
})

test('the data folder gets a key once, that only its owner reads; a command of the operator makes none', async () => {
  expect(await readSecretKeys(undefined, folder)).toBeNull()
  const made = await findSecretKeys(undefined, folder)
  expect(made).toHaveLength(1)
  expect(statSync(join(folder, 'secret-key')).mode & 0o777).toBe(0o600)
  expect(await readSecretKeys(undefined, folder)).toEqual(made)
  expect(await findSecretKeys(undefined, folder)).toEqual(made)
})

test('the file of the data folder has one key, or two', async () => {
  writeFileSync(join(folder, 'secret-key'), `${first}\n${second}\n`)
  expect(await findSecretKeys(undefined, folder)).toEqual(decoded(first, second))
  expect(await readSecretKeys(undefined, folder)).toEqual(decoded(first, second))
})

test.each(['', 'canary', `${first},canary`, `${first} ${second} ${third}`, first.slice(0, -1)])(
  'a file or a setting that holds %j is refused, and its text is not shown',
  async (text) => {
    const file = join(folder, 'secret-key')
    writeFileSync(file, text)
    for (const [setting, where] of [
      [text, 'CHOWDER_SECRET_KEY'],
      [undefined, file],
    ] as const) {
      const failure = await findSecretKeys(setting, folder).catch((error: Error) => error)
      expect(failure).toMatchObject({ name: 'StartupError', message: expect.stringContaining(where) })
      expect((failure as Error).message).toContain('does not hold one secret key, or two')
      expect((failure as Error).message).not.toContain('canary')
      expect((failure as Error).message).not.toContain(first)
    }
  },
)
