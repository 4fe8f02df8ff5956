import { randomUUID } from 'node:crypto'
import { readdir, readFile, rm } from 'node:fs/promises'
import { cpus } from 'node:os'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { Observation, Resources } from '#sandbox/driver.ts'
import { entriesOf } from '#sandbox/local/control-group.ts'
import { sandboxFolder } from '#sandbox/local/folder.ts'
import { openFilesOf } from '#sandbox/open-files.ts'
import { hasControlGroups, LocalHost } from '../../support/local-host.ts'
import { present } from '../../support/present.ts'
import { until } from '../../support/until.ts'

const within = () => AbortSignal.timeout(30_000)
const roomy: Resources = { memoryMb: 512, cpus: 1, pids: 128, diskMb: 64 }
const urlOf = ({ endpoint }: Observation, path: string) =>
  endpoint?.kind === 'tcp' ? `http://127.0.0.1:${endpoint.port}${path}` : ''

describe.skipIf(!hasControlGroups)('A7: the limits of a local sandbox that has a control group', () => {
  let host: LocalHost
  /** Another tenant, whose answers must not wait for an attack. */
  let neighbour: Observation
  let neighbourId: string
  const folderOf = (id: string) => sandboxFolder(join(host.dataDir, 'sandboxes'), id)
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

  test('all sandboxes together weigh half of what other programs do, and each the same', async () => {
    const { version, cpu } = present(await folderOf(neighbourId).controlGroup())
    const [file, usual, ofAll] =
      version === 2 ? (['cpu.weight', 100, 50] as const) : (['cpu.shares', 1024, 512 * cpus().length] as const)
    const weightOf = async (folder: string) => Number(await readFile(join(folder, file), 'utf8'))
    expect(await weightOf(dirname(cpu))).toBe(ofAll)
    expect(await weightOf(cpu)).toBe(usual)
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
    expect(await megabytes()).toBeGreaterThan(85)
    await exec(id, 'rm file-*')
    const [, slowestWhilePrinting] = await neighbourDuring(fetch(urlOf(await observe(id), '/prints')))
    expect(slowestWhilePrinting).toBeLessThan(boundMs)
    expect(await megabytes()).toBeLessThan(11)
  })

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
