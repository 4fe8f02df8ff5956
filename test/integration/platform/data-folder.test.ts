import { execFile } from 'node:child_process'
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setImmediate } from 'node:timers/promises'
import { promisify } from 'node:util'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { copyOnce, dataFolder, hostId, nodeBinary, prepareDataFolder } from '#platform/data-folder.ts'

const isRoot = process.getuid?.() === 0
const run = promisify(execFile)
const modeOf = async (path: string) => (await stat(path)).mode & 0o777

let home: string

beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'chowder-data-folder-'))
  await chmod(home, 0o711)
})

afterEach(async () => {
  await chmod(home, 0o711)
  await rm(home, { recursive: true, force: true })
})

test('the path of the data folder is the configured one, else the default of this user, and absolute', () => {
  expect(dataFolder('some/where')).toBe(join(process.cwd(), 'some/where'))
  expect(dataFolder(undefined)).toBe(isRoot ? '/var/lib/chowder' : join(process.cwd(), 'data'))
})

test('other users can enter a new data folder of root but not list it, and not enter that of another user', async () => {
  const umask = process.platform === 'win32' ? 0 : 0o077
  await run(process.execPath, [
    ...['--input-type=module', '--eval'],
    `process.umask(${umask}); await (await import('${import.meta.resolve('#platform/data-folder.ts')}')).prepareDataFolder('${home}/a/b')`,
  ])
  for (const folder of ['a', 'a/b']) expect(await modeOf(join(home, folder))).toBe(isRoot ? 0o711 : 0o700)
})

test('processes that start at the same time can all enter the folder that one of them makes', async () => {
  for (let round = 0; round < 50; round += 1) {
    const data = join(home, `${round}`, 'data')
    const afterTurns = async (turns: number) => {
      for (let turn = 0; turn < turns; turn += 1) await setImmediate()
      await prepareDataFolder(data)
    }
    await Promise.all(Array.from({ length: 20 }, (_, index) => afterTurns(2 * index)))
  }
})

test.runIf(isRoot)('as root, closed folders on the way are named with the command that opens them', async () => {
  const closed = join(home, 'closed')
  await mkdir(join(closed, 'inner'), { recursive: true })
  await chmod(closed, 0o700)
  await chmod(join(closed, 'inner'), 0o750)
  const data = join(closed, 'inner', 'data')
  await expect(prepareDataFolder(data)).rejects.toThrow(`chmod o+x '${closed}' '${closed}/inner'`)
  await expect(stat(data)).rejects.toThrow('ENOENT')
  await run('chmod', ['o+x', closed, `${closed}/inner`])
  await prepareDataFolder(data)
})

test.skipIf(isRoot)('as an ordinary user, a folder that cannot be written is named with the way out', async () => {
  await chmod(home, 0o500)
  await expect(prepareDataFolder(home)).rejects.toThrow(`the data folder ${home} cannot be used: it cannot be written`)
  await expect(prepareDataFolder(join(home, 'new'))).rejects.toThrow('Set CHOWDER_DATA_DIR to another folder')
})

test('a file in the place of the data folder is an error that says so', async () => {
  await writeFile(join(home, 'file'), '')
  await expect(prepareDataFolder(join(home, 'file'))).rejects.toThrow('there is a file in its place')
  await expect(prepareDataFolder(join(home, 'file', 'data'))).rejects.toThrow('there is a file in its place')
})

test('a file system that refuses the folder is an error with the way out', async () => {
  await expect(prepareDataFolder('/proc/nope/data')).rejects.toThrow(
    'the data folder /proc/nope/data cannot be used: its file system lets nobody make it. Set CHOWDER_DATA_DIR to another',
  )
})

test('a copy is complete, readable for all users, made once by several calls, and removes the rest of a killed one', async () => {
  const source = join(home, 'source')
  await mkdir(join(source, 'bin'), { recursive: true, mode: 0o700 })
  await writeFile(join(source, 'bin', 'program'), 'one', { mode: 0o700 })
  await writeFile(join(source, 'text'), 'two', { mode: 0o600 })
  await symlink('bin/program', join(source, 'link'))
  const parent = join(home, 'below')
  const target = join(parent, '1.0')
  const left = join(parent, '.1.0.0123456789ab.tmp')
  const others = join(parent, '.1.0.1.0123456789ab.tmp')
  for (const folder of [left, others]) await mkdir(folder, { recursive: true })
  await Promise.all(Array.from({ length: 5 }, () => copyOnce(source, target)))
  expect((await readdir(parent)).sort()).toEqual(['.1.0.1.0123456789ab.tmp', '1.0'])
  expect(await readFile(join(target, 'link'), 'utf8')).toBe('one')
  expect(await modeOf(join(target, 'bin', 'program'))).toBe(0o755)
  expect(await modeOf(join(target, 'text'))).toBe(0o644)
  await writeFile(join(source, 'text'), 'changed')
  await copyOnce(source, target)
  expect(await readFile(join(target, 'text'), 'utf8')).toBe('two')
})

test('a copy that fails leaves nothing behind and is made by the next call', async () => {
  const source = join(home, 'source')
  const target = join(home, 'below', 'copy')
  await writeFile(source, 'text')
  const fail = () => Promise.reject(new Error('no space'))
  await expect(copyOnce(source, target, { finish: fail })).rejects.toThrow('no space')
  expect(await readdir(join(home, 'below'))).toEqual([])
  await copyOnce(source, target)
  expect(await readFile(target, 'utf8')).toBe('text')
})

test('the host id is the same UUID for all calls, also at the same time', async () => {
  const ids = await Promise.all(Array.from({ length: 5 }, () => hostId(home)))
  expect(ids[0]).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/)
  expect(new Set([...ids, await hostId(home)]).size).toBe(1)
  expect(await readdir(home)).toEqual(['host-id'])
})

test('another user can run the Node.js binary, which has the version of this process', async () => {
  const binary = await nodeBinary(home)
  const user = isRoot ? { uid: 65534, gid: 65534 } : {}
  const { stdout } = await run(binary, ['--version'], { ...user, cwd: '/' })
  expect(stdout.trim()).toBe(process.version)
  expect(binary.startsWith(home)).toBe(isRoot)
})
