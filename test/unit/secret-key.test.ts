import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { findSecretKeys, newSecretKey, readSecretKeys, writeKeyFile } from '#platform/secret-key.ts'

const [first, second, third] = [1, 2, 3].map((n) => Buffer.alloc(32, n).toString('base64')) as [string, string, string]
const decoded = (...keys: string[]) => keys.map((key) => Buffer.from(key, 'base64'))

let folder: string
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'chowder-keys-'))
})
afterAll(() => rmSync(folder, { recursive: true }))

const inFile = (name: string, text: string) => {
  writeFileSync(join(folder, name), text)
  return join(folder, name)
}

/** A fake of the client of a KMS: a script of the shell. */
function fakeKms(name: string, script: string): string {
  const path = inFile(name, `#!/bin/sh\n${script}\n`)
  chmodSync(path, 0o755)
  return path
}

const byCommand = (command: string) => findSecretKeys({ CHOWDER_SECRET_KEY_COMMAND: command }, folder)

test.each([',', ' ', '\n', ' , \r\n'])('a setting has one key, or two that %j separates', async (separator) => {
  const { keys } = await findSecretKeys({ CHOWDER_SECRET_KEY: `${first}${separator}${second}` }, folder)
  expect(keys).toEqual(decoded(first, second))
  expect((await findSecretKeys({ CHOWDER_SECRET_KEY: first }, folder)).keys).toEqual(decoded(first))
})

test('a file of the setting is named, and what it holds is read from it', async () => {
  const file = inFile('given', `${first}\n${second}\n`)
  const found = await findSecretKeys({ CHOWDER_SECRET_KEY: first, CHOWDER_SECRET_KEY_FILE: file }, folder)
  expect(found).toEqual({ keys: decoded(first, second), file, isOwnFile: false })
})

test('the data folder gets a key once, that only its owner reads; a command of the operator makes none', async () => {
  expect(await readSecretKeys({}, folder)).toBeNull()
  const made = await findSecretKeys({}, folder)
  expect([made.keys.length, made.file, made.isOwnFile]).toEqual([1, join(folder, 'secret-key'), true])
  expect(statSync(join(folder, 'secret-key')).mode & 0o777).toBe(0o600)
  expect(await readSecretKeys({}, folder)).toEqual(made)
  expect(await findSecretKeys({}, folder)).toEqual(made)
})

test.each(['', 'canary', `${first},canary`, `${first} ${second} ${third}`, first.slice(0, -1)])(
  'a file that holds %j is refused, and its text is not shown',
  async (text) => {
    const file = inFile('bad', text)
    const failure = await findSecretKeys({ CHOWDER_SECRET_KEY_FILE: file }, folder).catch((error: Error) => error)
    expect(failure).toMatchObject({ name: 'StartupError', message: expect.stringContaining(`${file} does not hold`) })
    expect((failure as Error).message).not.toContain('canary')
    expect((failure as Error).message).not.toContain(first)
  },
)

test('a command prints one key or two, and gets its arguments without a shell', async () => {
  expect((await byCommand(fakeKms('fake-kms', `echo ${first}`))).keys).toEqual(decoded(first))
  const two = fakeKms('fake-kms-two', `[ "$1 $2" = "--name \\$HOME" ] && printf '%s\\n%s\\n' ${first} ${second}`)
  expect(await byCommand(`${two}  --name $HOME`)).toEqual({
    keys: decoded(first, second),
    file: null,
    isOwnFile: false,
  })
})

test.each([
  ['exit-code', 'echo canary; exit 7', 'ended with code 7'],
  ['garbage', 'echo canary', 'does not print one secret key'],
  ['nothing', 'true', 'does not print one secret key'],
  ['too-much', 'yes canary', 'prints more than a key'],
  ['signal', 'kill -9 $$', 'failed (SIGKILL)'],
])('a command with %s is refused, and what it prints is not shown', async (name, script, said) => {
  const failure = await byCommand(fakeKms(`fake-kms-${name}`, script)).catch((error: Error) => error)
  expect(failure).toMatchObject({ name: 'StartupError', message: expect.stringContaining(said) })
  expect((failure as Error).message).toContain('CHOWDER_SECRET_KEY_COMMAND')
  expect((failure as Error).message).not.toContain('canary')
})

test('a command that is not there is refused', async () => {
  await expect(byCommand(join(folder, 'none'))).rejects.toThrow('failed (ENOENT)')
})

test('a command that does not end is ended at its deadline', async () => {
  const command = fakeKms('fake-kms-hangs', 'exec sleep 60')
  const asked = findSecretKeys({ CHOWDER_SECRET_KEY_COMMAND: command }, folder, { commandTimeoutMs: 200 })
  await expect(asked).rejects.toThrow('did not end within 0.2 s')
})

test('the file is replaced as a whole, with its mode, and nothing is left beside it', async () => {
  const file = inFile('written', first)
  chmodSync(file, 0o640)
  const keys = [newSecretKey(), newSecretKey()]
  const others = readdirSync(folder)
  await writeKeyFile(file, keys)
  expect((await readSecretKeys({ CHOWDER_SECRET_KEY_FILE: file }, folder))?.keys).toEqual(keys)
  expect([statSync(file).mode & 0o777, readdirSync(folder)]).toEqual([0o640, others])
  expect(readFileSync(file, 'utf8').trim().split('\n')).toHaveLength(2)
})
