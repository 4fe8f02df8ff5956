import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { type ControlGroup, freezeGroup, isFrozen, thawGroup } from '#sandbox/local/control-group.ts'

const within = () => AbortSignal.timeout(20_000)
const megabyte = 1024 * 1024

/** A folder with plain files in place of the kernel's of version 2, which do nothing. */
let folder: string
let group: ControlGroup
const file = (name: string) => readFileSync(join(folder, name), 'utf8').trim()
const used = (megabytes: number) => writeFileSync(join(folder, 'memory.current'), `${megabytes * megabyte}\n`)
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'chowder-group-'))
  group = { version: 2, memory: folder, pids: folder, cpu: folder, freezer: folder, oomKills: 0 }
  writeFileSync(join(folder, 'cgroup.freeze'), '0\n')
  writeFileSync(join(folder, 'cgroup.events'), 'populated 1\nfrozen 1\n')
  writeFileSync(join(folder, 'memory.swap.max'), '0\n')
  writeFileSync(join(folder, 'memory.reclaim'), '')
  used(100)
})
afterEach(() => rmSync(folder, { recursive: true }))

test('a group of version 2 is frozen, may use swap meanwhile, and is asked for all of its memory', async () => {
  expect(await isFrozen(group)).toBe(false)
  expect(await freezeGroup(group, 200 * megabyte, within())).toBe(true)
  expect(await isFrozen(group)).toBe(true)
  expect([file('cgroup.freeze'), file('memory.swap.max')]).toEqual(['1', 'max'])
  expect(file('memory.reclaim')).toBe(String(100 * megabyte))
  await thawGroup(group)
  expect(await isFrozen(group)).toBe(false)
  expect([file('cgroup.freeze'), file('memory.swap.max')]).toEqual(['0', '0'])
})

test('a group is not frozen without swap for all of its memory', async () => {
  expect(await freezeGroup(group, 99 * megabyte, within())).toBe(false)
  expect(await freezeGroup(group, 0, within())).toBe(false)
  expect([file('cgroup.freeze'), file('memory.swap.max'), file('memory.reclaim')]).toEqual(['0', '0', ''])
})

test('a group whose memory the kernel does not move is thawed', async () => {
  used(1000)
  expect(await freezeGroup(group, 2000 * megabyte, within())).toBe(false)
  expect([file('cgroup.freeze'), file('memory.swap.max')]).toEqual(['0', '0'])
})

test('a group whose processes do not stop is thawed', { timeout: 30_000 }, async () => {
  writeFileSync(join(folder, 'cgroup.events'), 'populated 1\nfrozen 0\n')
  expect(await freezeGroup(group, 200 * megabyte, within())).toBe(false)
  expect([file('cgroup.freeze'), file('memory.reclaim')]).toEqual(['0', ''])
})

test('the group of a gateway that an earlier version has started is not frozen', async () => {
  const { freezer: _, ...earlier } = group
  expect(await freezeGroup(earlier, 200 * megabyte, within())).toBe(false)
  expect([await isFrozen(earlier), file('cgroup.freeze')]).toEqual([false, '0'])
  await thawGroup(earlier)
})
