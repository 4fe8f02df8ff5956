import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { getPriority, tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import type { ControlGroup } from '#sandbox/local/control-group.ts'
import { limitedCommand, processesOfJail } from '#sandbox/local/limits.ts'
import { openFilesOf } from '#sandbox/open-files.ts'

const resources = { memoryMb: 2048, cpus: 2, pids: 512, diskMb: 64 }

test('all processes of an agent together open a quarter of the files that the host has room for', () => {
  expect(openFilesOf(512, 2_466_165)).toBe(1204)
  expect(openFilesOf(512, 2 ** 63)).toBe(16_384)
  expect(openFilesOf(4096, 400_000)).toBe(1024)
})

test('only the jail of an agent without a control group and without a user of its own limits processes', () => {
  const group: ControlGroup = { version: 2, memory: '/x', pids: '/x', cpu: '/x', oomKills: 0 }
  expect(processesOfJail({ resources, uid: null, isJailed: true }, null)).toBe(512)
  expect(processesOfJail({ resources, uid: null, isJailed: true }, group)).toBe(null)
  expect(processesOfJail({ resources, uid: 20_000, isJailed: true }, null)).toBe(null)
  expect(processesOfJail({ resources, uid: null }, null)).toBe(null)
})

test('A7: without a control group an agent has a lower priority than other programs', () => {
  const place = mkdtempSync(join(tmpdir(), 'chowder-limits-'))
  try {
    writeFileSync(join(place, 'cgroup.procs'), '')
    const group: ControlGroup = { version: 2, memory: place, pids: place, cpu: place, oomKills: 0 }
    const shown = (of: ControlGroup | null) => {
      const show = 'nice; ulimit -n; ulimit -c; cat /proc/self/oom_score_adj'
      const { argv, env } = limitedCommand({ resources, uid: null, isJailed: true }, of, ['/bin/sh', '-c', show])
      const [program, ...args] = argv
      return execFileSync(program, args, { env: { PATH: '/usr/bin:/bin', ...env }, encoding: 'utf8' }).split('\n')
    }
    const rest = [String(openFilesOf(512)), '0', '800', '']
    expect(shown(null)).toEqual([String(Math.min(19, getPriority() + 10)), ...rest])
    expect(shown(group)).toEqual([String(getPriority()), ...rest])
    expect(readFileSync(join(place, 'cgroup.procs'), 'utf8')).toBe('0\n')
  } finally {
    rmSync(place, { recursive: true })
  }
})
