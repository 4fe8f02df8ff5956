import { createHash, randomUUID } from 'node:crypto'
import { existsSync } from 'node:fs'
import { readdir, readFile, rm } from 'node:fs/promises'
import { cpus, tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { Observation, Resources } from '#sandbox/driver.ts'
import { entriesOf } from '#sandbox/local/control-group.ts'
import { setDiskQuota } from '#sandbox/local/disk-quota.ts'
import { sandboxFolder } from '#sandbox/local/folder.ts'
import { openFilesOf } from '#sandbox/open-files.ts'
import { hasControlGroups, LocalHost } from '../support/local-host.ts'
import { present } from '../support/present.ts'
import { until } from '../support/until.ts'

const mountPoint = '/sys/fs/cgroup'
const isRoot = process.getuid?.() === 0
/** Of no sandbox. */
const unusedUid = 19_999
const within = () => AbortSignal.timeout(30_000)
const roomy: Resources = { memoryMb: 512, cpus: 1, pids: 128, diskMb: 64 }
const hasQuotas = isRoot && hasControlGroups && (await setDiskQuota(tmpdir(), unusedUid, 0))
const urlOf = ({ endpoint }: Observation, path: string) =>
  endpoint?.kind === 'tcp' ? `http://127.0.0.1:${endpoint.port}${path}` : ''

describe.skipIf(!hasControlGroups)('A7: the limits of a local sandbox that has a control group', () => {
  let host: LocalHost
  /** Another tenant, whose answers must not wait for an attack. */
  let neighbour: Observation
  let neighbourId: string
  /** The weights of a sandbox with a low priority, and with the lowest; of an idle group it is 0. */
  const low = 10
  let lowest: number
  /** With `cpus` 0.2, of which a sandbox gets its part on a busy host as well. */
  const computing = (seconds: number) => `timeout ${seconds} sh -c 'while :; do :; done & while :; do :; done'`

  const folderOf = (id: string) => sandboxFolder(join(host.dataDir, 'sandboxes'), id)
  async function weightOf(id: string, of: 'one' | 'all' = 'one'): Promise<number> {
    const { version, cpu } = present(await folderOf(id).controlGroup())
    const folder = of === 'all' ? dirname(cpu) : cpu
    if (Number(await readFile(join(folder, 'cpu.idle'), 'utf8').catch(() => '0'))) return 0
    if (version === 2) return Number(await readFile(join(folder, 'cpu.weight'), 'utf8'))
    const usual = of === 'all' ? 1024 * cpus().length : 1024
    return Math.round((Number(await readFile(join(folder, 'cpu.shares'), 'utf8')) * 100) / usual)
  }
  const observe = (id: string) => host.driver.observe(id, within())
  const exec = (id: string, script: string, timeoutMs = 20_000) =>
    host.driver.exec(id, ['sh', '-c', script], { timeoutMs }, within())
  async function started(resources: Partial<Resources> = {}) {
    const id = randomUUID()
    await host.driver.create(host.specOf(id, { resources: { ...roomy, ...resources } }), within())
    await host.driver.start(id, within())
    await until('its gateway to answer', async () =>
      fetch(urlOf(await observe(id), '/whoami')).then(
        () => true,
        () => false,
      ),
    )
    return id
  }

  /** The slowest of all but one in twenty of the neighbour's answers until the attack ends. */
  async function neighbourDuring<T>(attack: Promise<T>): Promise<[T, number]> {
    const durations: number[] = []
    let isOver = false
    const ended = attack.finally(() => {
      isOver = true
    })
    while (!isOver) {
      const startedAt = performance.now()
      await fetch(urlOf(neighbour, '/whoami')).then((answer) => answer.text())
      durations.push(performance.now() - startedAt)
      await sleep(20)
    }
    durations.sort((a, b) => a - b)
    return [await ended, durations[Math.floor(durations.length * 0.95)] ?? 0]
  }
  /** Much more than an answer takes on a busy machine, much less than one takes that waits for an attack. */
  const boundMs = 300

  beforeAll(async () => {
    host = await LocalHost.make()
    neighbourId = await started()
    neighbour = await observe(neighbourId)
    const { cpu } = present(await folderOf(neighbourId).controlGroup())
    lowest = existsSync(join(cpu, 'cpu.idle')) ? 0 : 1 // since Linux 5.15
  })
  afterAll(() => host.remove())

  test('a program that forks without end gets no more processes than its sandbox has, and the next one runs', async () => {
    const id = await started({ pids: 40 })
    const bomb = 'bomb() { bomb | bomb & }; bomb; sleep 3; echo over'
    const [, slowest] = await neighbourDuring(exec(id, bomb, 5000))
    const { processes } = await host.driver.measure(id, within())
    expect(processes).toBeLessThanOrEqual(40)
    expect(slowest).toBeLessThan(boundMs)
    await host.driver.stop(id, { graceMs: 0 }, within())
    await host.driver.start(id, within())
    expect((await exec(id, 'for i in 1 2 3; do sleep 0.1 & done; wait; echo ok')).stdout).toBe('ok\n')
  })

  test.each([false, true])('Node.js knows the limit of memory; in a jail: %s', async (isJailed) => {
    const own = isJailed ? await LocalHost.make({ isJailed }) : host
    try {
      const id = randomUUID()
      await own.driver.create(own.specOf(id, { resources: roomy }), within())
      await own.driver.start(id, within())
      const { paths } = await own.driver.observe(id, within())
      const show = 'process.constrainedMemory() + " " + require("node:v8").getHeapStatistics().heap_size_limit'
      const argv = [present(paths).node, '-p', show]
      const { stdout } = await own.driver.exec(id, argv, { timeoutMs: 20_000 }, within())
      const [limit = 0, heap = 0] = stdout.split(' ').map(Number)
      expect(limit).toBe(roomy.memoryMb * 1024 * 1024)
      expect(heap).toBeLessThan(limit)
    } finally {
      if (own !== host) await own.remove()
    }
  })

  const eat = (megabytes: number) => `head -c ${megabytes}m /dev/zero | tail -c ${megabytes}m | wc -c`

  test('a program that takes too much memory is ended, one that takes less is not', async () => {
    const id = await started({ memoryMb: 256 })
    const [eaten, slowest] = await neighbourDuring(exec(id, eat(400)))
    expect(eaten.stdout.trim()).not.toBe(String(400 * 1024 * 1024))
    expect(slowest).toBeLessThan(boundMs)
    expect((await exec(id, eat(50))).stdout.trim()).toBe(String(50 * 1024 * 1024))
    expect(await observe(id)).toMatchObject({ state: 'running' })
  })

  test('a gateway that runs out of memory has ended for that, and one that is killed has not', async () => {
    const id = await started({ memoryMb: 200 })
    await fetch(urlOf(await observe(id), '/eats')).catch(() => {})
    await until('the end of the gateway', async () => (await observe(id)).state === 'stopped')
    expect((await observe(id)).exit).toEqual({ code: 137, oom: true })
    await host.driver.start(id, within())
    await exec(id, `kill -9 ${present(await folderOf(id).gateway()).pid}`)
    await until('the end of the gateway', async () => (await observe(id)).state === 'stopped')
    expect((await observe(id)).exit).toEqual({ code: 137, oom: false })
  })

  test('programs that compute without end get the processors of their sandbox, and no more', async () => {
    const id = await started({ cpus: 0.5 })
    const spin = "timeout 20 sh -c 'while :; do :; done & while :; do :; done'"
    const look = async () => {
      const { cpuSeconds } = await host.driver.measure(id, within())
      return { used: present(cpuSeconds), at: performance.now() / 1000 }
    }
    const [share, slowest] = await neighbourDuring(
      (async () => {
        const spinning = exec(id, spin, 6000)
        await sleep(1500)
        const before = await look()
        await sleep(2000)
        const after = await look()
        await spinning
        return (after.used - before.used) / (after.at - before.at)
      })(),
    )
    expect(share).toBeLessThan(0.75)
    expect(share).toBeGreaterThan(0.02) // they do compute
    expect(slowest).toBeLessThan(boundMs)
    await host.driver.destroy(id, within())
  })

  test('a sandbox that wants several processors weighs less than others, and all less than Chowder', async () => {
    const id = await started({ cpus: 0.2 })
    const weights = async () => {
      await host.driver.weigh?.(within())
      return Promise.all([weightOf(id), weightOf(neighbourId), weightOf(id, 'all')])
    }
    await until('less weight of all while none starts', async () => {
      await sleep(500)
      return (await weights())[2] === 50
    })
    let spinning = exec(id, computing(25), 29_000).catch(() => {})
    // The neighbour, which rests, uses a little.
    const almostUsual = expect.toSatisfy((weight: number) => weight > 80 && weight <= 100)
    for (const end = performance.now() + 7000; performance.now() < end; await sleep(500)) {
      const [own, others] = await weights()
      expect([own, others], 'as long as a start may compute').toEqual([100, 100])
    }
    expect((await weights())[2], 'of all').toEqual(almostUsual)
    const group = present(await folderOf(id).controlGroup())
    await folderOf(id).writeControlGroup({ ...group, secondsBefore: -15 })
    const little = expect.toSatisfy((weight: number) => weight >= 50 && weight < 65)
    await until('less weight after its start', async () => {
      await sleep(500)
      return (await weights())[0] === low
    })
    expect((await weights()).slice(1)).toEqual([100, little])
    await host.driver.stop(id, { graceMs: 0 }, within())
    await spinning
    await host.driver.start(id, within())
    spinning = exec(id, computing(8)).catch(() => {})
    await sleep(1000)
    expect(await weights(), 'after the next start').toEqual([100, 100, almostUsual])
    await host.driver.stop(id, { graceMs: 0 }, within())
    await spinning
  })

  test('the start of a sandbox is over once it rests', async () => {
    const id = await started({ cpus: 0.2 })
    const group = present(await folderOf(id).controlGroup())
    await folderOf(id).writeControlGroup({ ...group, secondsBefore: -6 })
    const weightAfter = async (of: 'one' | 'all') => {
      await sleep(500)
      await host.driver.weigh?.(within())
      return weightOf(id, of)
    }
    await weightAfter('all') // a first look says nothing
    await until('no start', async () => (await weightAfter('all')) === 50)
    const spinning = exec(id, computing(20), 30_000)
    await until('less weight', async () => (await weightAfter('one')) === low)
    await spinning
  })

  test('a sandbox gets its weight back once it rests', async () => {
    const id = await started({ cpus: 0.2 })
    const group = present(await folderOf(id).controlGroup())
    await folderOf(id).writeControlGroup({ ...group, secondsBefore: -15 })
    const weight = async () => {
      await host.driver.weigh?.(within())
      return weightOf(id)
    }
    const isAfter = (wanted: number) => async () => {
      await sleep(500)
      return (await weight()) === wanted
    }
    const spinning = exec(id, computing(20), 30_000)
    await until('less weight', isAfter(low))
    await until('the lowest', isAfter(lowest))
    await spinning
    await until('its weight back', isAfter(100))
  })

  test('without a sandbox the weighing makes no group', async () => {
    const empty = await LocalHost.make()
    try {
      await empty.driver.weigh?.(within())
      const name = `chowder-${createHash('sha256').update(empty.dataDir).digest('hex').slice(0, 12)}`
      const mounted = [mountPoint, ...(await readdir(mountPoint)).map((one) => join(mountPoint, one))]
      expect(mounted.map((folder) => join(folder, name)).filter(existsSync)).toEqual([])
    } finally {
      await empty.remove()
    }
  })

  test('a process opens a bounded number of files, writes no core file, and no file above the disk of its sandbox', async () => {
    const id = await started({ diskMb: 8 })
    const limits = (await exec(id, 'cat /proc/self/limits; cat /proc/self/oom_score_adj')).stdout
    expect(limits).toMatch(/Max core file size +0 +0/)
    const files = openFilesOf(roomy.pids)
    expect(limits).toMatch(new RegExp(`Max open files +${files} +${files} `))
    expect(limits).toMatch(/\n800\n$/)
    const { node = '' } = (await observe(id)).paths ?? {}
    const opens =
      "let n = 0; try { for (;;) { fs.openSync('/dev/null'); n++ } } catch ({ code }) { console.log(code, n) }"
    const [opened, slowest] = await neighbourDuring(
      host.driver.exec(id, [node, '-e', opens], { timeoutMs: 20_000 }, within()),
    )
    expect(opened.stdout).toMatch(/^EMFILE \d+\n$/)
    expect(Number(opened.stdout.slice(7))).toBeGreaterThan(files - 100)
    expect(slowest).toBeLessThan(boundMs)
    expect((await exec(id, 'head -c 9m /dev/zero > big; wc -c < big')).stdout).toBe(`${8 * 1024 * 1024}\n`)
    expect((await exec(id, 'rm big; head -c 7m /dev/zero > big; wc -c < big')).stdout).toBe(`${7 * 1024 * 1024}\n`)
  })

  test('an agent that fills its disk is seen at the next look, and one that prints without end keeps 10 MB of it', async () => {
    const id = await started({ diskMb: 64 })
    const megabytes = async () => present((await host.driver.diskUse([id], within())).get(id)) / 1024 / 1024
    expect(await megabytes()).toBeLessThan(1)
    const filling = 'for i in 1 2 3; do head -c 30m /dev/zero > file-$i; done'
    const [, slowest] = await neighbourDuring(exec(id, filling))
    expect(slowest).toBeLessThan(boundMs)
    expect(await megabytes()).toBeGreaterThan(hasQuotas ? 63 : 85)
    await exec(id, 'rm file-*')
    const [, slowestWhilePrinting] = await neighbourDuring(fetch(urlOf(await observe(id), '/prints')))
    expect(slowestWhilePrinting).toBeLessThan(boundMs)
    expect(await megabytes()).toBeLessThan(11)
  })

  test.runIf(hasQuotas)(
    'where the file system has quotas, an agent gets no more of it, and no more files',
    async () => {
      const id = await started({ diskMb: 10 })
      const fill = 'for i in 1 2 3; do head -c 6m /dev/zero > file-$i; done; cat file-* | wc -c'
      const mostOf = (megabytes: number) => megabytes * 1024 * 1024
      const filled = async () => Number((await exec(id, fill)).stdout)
      expect(await filled()).toBeGreaterThan(mostOf(9))
      expect(await filled()).toBeLessThanOrEqual(mostOf(10))
      expect(await host.driver.limit(id, { ...roomy, diskMb: 15 }, within())).toMatchObject({ diskMb: 15 })
      expect(await filled()).toBeGreaterThan(mostOf(14))
      expect(await filled()).toBeLessThanOrEqual(mostOf(15))
      await exec(id, 'rm file-*')
      const touch = 'open $opened, ">", "empty-$_" or print "$!" and exit for 1 .. 10000'
      expect((await exec(id, `perl -e '${touch}'`)).stdout).toBe('Disk quota exceeded')
    },
  )

  test('A6: a program cannot leave its control group, which goes with its sandbox', async () => {
    const id = await started()
    const group = present(await folderOf(id).controlGroup())
    const pids = await readFile(join(group.pids, 'cgroup.procs'), 'utf8')
    expect(pids.trim().split('\n').length).toBeGreaterThan(1)
    for (const entry of entriesOf(group)) {
      const { stdout } = await exec(id, `echo 0 > ${join(entry, '../../cgroup.procs')} || echo kept`)
      expect(stdout).toContain('kept')
    }
    const inside = (await exec(id, 'cat /proc/self/cgroup')).stdout
    expect(inside).toContain(id)
    await host.driver.destroy(id, within())
    for (const entry of entriesOf(group)) {
      await expect(readdir(join(entry, '..'))).rejects.toThrow('ENOENT')
    }
  })

  test('the groups of sandboxes that are gone are removed by the next control plane', async () => {
    const id = await started()
    const group = present(await folderOf(id).controlGroup())
    await host.driver.stop(id, { graceMs: 0 }, within())
    await rm(folderOf(id).path, { recursive: true })
    const next = LocalHost.on(host.dataDir)
    const other = randomUUID()
    await next.driver.create(next.specOf(other), within())
    await next.driver.start(other, within())
    await expect(readdir(group.memory)).rejects.toThrow('ENOENT')
    await next.driver.destroy(other, within())
  })
})
