import { execFile } from 'node:child_process'
import { link, mkdtemp, open, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { createHostDisk } from '#platform/host-disk.ts'
import { diskOf } from '#sandbox/local/measure.ts'
import { present } from '../../support/present.ts'

const run = promisify(execFile)
const block = 4096
const isRoot = process.getuid?.() === 0

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'chowder-disk-'))
})
afterEach(() => rm(folder, { recursive: true, force: true }))

const grownBy = async (change: () => Promise<unknown>): Promise<number> => {
  const before = present(await diskOf(folder))
  await change()
  return present(await diskOf(folder)) - before
}

test('what a folder takes of the disk is what its files take, once for each, with its folders', async () => {
  await writeFile(join(folder, 'ten blocks'), Buffer.alloc(10 * block, 1), { flush: true })
  expect(await grownBy(() => link(join(folder, 'ten blocks'), join(folder, 'again')))).toBe(0)
  const sparse = async () => {
    await using file = await open(join(folder, 'sparse'), 'w')
    await file.truncate(1024 * block)
  }
  expect(await grownBy(sparse)).toBeLessThanOrEqual(block)
  const { stdout } = await run('du', ['-s', '--block-size=1', folder])
  expect(await diskOf(folder)).toBeCloseTo(Number.parseInt(stdout, 10), -4)
})

test('each file counts at least a block, also when it is empty', async () => {
  const files = Array.from({ length: 1000 }, (_, index) => join(folder, `${index}`))
  const grown = await grownBy(() => Promise.all(files.map((file) => writeFile(file, ''))))
  expect(grown).toBeGreaterThanOrEqual(999 * block)
})

test('a deleted file counts once while processes have it open, if it is on the disk of the folder', async () => {
  const owner = isRoot ? 31_338 : (process.getuid?.() ?? 0)
  async function openDeleted(path: string) {
    const file = await open(path, 'w')
    const again = await open(path, 'r')
    await file.chown(owner, owner) // root's files are those of the host
    await rm(path)
    await file.writeFile(Buffer.alloc(10 * block, 1))
    await file.datasync()
    return [file, again]
  }
  const ofProcess = async () => present(await diskOf(folder, [process.pid]))
  const before = await ofProcess()
  const elsewhere = await openDeleted(`/dev/shm/chowder-${process.pid}`)
  expect(await ofProcess()).toBe(before)
  const here = await openDeleted(join(folder, 'deleted'))
  expect(await ofProcess()).toBe(before + 10 * block)
  expect(await diskOf(folder)).toBe(before)
  for (const file of [...here, ...elsewhere]) await file.close()
  expect(await ofProcess()).toBe(before)
})

test('of a measurement that is cut short, the last line may be half', async () => {
  const program = join(folder, 'find')
  await writeFile(program, '#!/bin/sh\nprintf "8 1\\n8 1\\n8 "', { mode: 0o755 })
  const script = join(import.meta.dirname, '../../../src/sandbox/disk-use.sh')
  const { stdout } = await run('/bin/sh', [script, folder], { env: { PATH: `${folder}:/usr/bin:/bin` } })
  expect(stdout).toBe(`${2 * block}\n`)
})

test.runIf(isRoot)('a disk with room for few files more is low, though it has bytes left', async () => {
  await run('mount', ['-t', 'tmpfs', '-o', 'size=64m,nr_inodes=1000', 'chowder-test', folder])
  try {
    const isLow = async () => (await createHostDisk(folder, 1).read()).isLow
    expect(await isLow()).toBe(false)
    await Promise.all(Array.from({ length: 950 }, (_, index) => writeFile(join(folder, `${index}`), '')))
    expect(await isLow()).toBe(true)
    expect(await createHostDisk(folder, 0).read()).toMatchObject({ isLow: false })
  } finally {
    await run('umount', [folder])
  }
})
