import { randomUUID } from 'node:crypto'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { constants, getPriority } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { sandboxFolder } from '#sandbox/local/folder.ts'
import { createPriorities, type Jailed } from '#sandbox/local/priorities.ts'
import { createPriorityWatch, type PriorityWatch } from '#sandbox/local/priority-watch.ts'
import { processesInJail } from '#sandbox/local/processes.ts'
import type { Priority } from '#sandbox/processor-demand.ts'
import { LocalHost } from '../support/local-host.ts'
import { present } from '../support/present.ts'
import { until } from '../support/until.ts'

const within = () => AbortSignal.timeout(60_000)
const lowest = constants.priority.PRIORITY_LOW
/** Computes for a minute in two threads that are not the first one of their process. */
const computing =
  "for (let i = 0; i < 2; i++) new (require('node:worker_threads').Worker)('for (const end = Date.now() + 60e3; Date.now() < end;);', { eval: true })"
/** Says that all sandboxes have a priority. */
const saying =
  (priority: Priority): PriorityWatch =>
  async (all) =>
    all.map(({ id }) => ({ id, used: 2, isStarting: false, priority, isToApply: true }))

describe('the priority of a sandbox in a jail', () => {
  let host: LocalHost

  const folderOf = (id: string) => sandboxFolder(join(host.dataDir, 'sandboxes'), id)
  async function jailed(id: string): Promise<Jailed> {
    const [init, gateway] = [present(await folderOf(id).init()), present(await folderOf(id).gateway())]
    return { init, gateway, cpus: 0.05 } // of which it gets its part on a busy host as well
  }
  async function started(): Promise<string> {
    const id = randomUUID()
    await host.driver.create(host.specOf(id), within())
    await host.driver.start(id, within())
    return id
  }
  /** Runs a program in a sandbox. */
  async function run(id: string, program: string) {
    const { init } = await jailed(id)
    const { node = '' } = (await host.driver.observe(id, within())).paths ?? {}
    const before = await processesInJail(init)
    const ended = host.driver.exec(id, [node, '-e', program], { timeoutMs: 60_000 }, within())
    const find = async () => (await processesInJail(init))?.find((pid) => !before?.includes(pid))
    await until('the program', async () => (await find()) !== undefined)
    return { pid: present(await find()), ended }
  }
  /** Of all threads of a process. */
  const prioritiesOf = (pid: number) => new Set(readdirSync(`/proc/${pid}/task`).map((id) => getPriority(Number(id))))
  const prioritySession = (pid: number) => / nice (-?\d+)\n/.exec(readFileSync(`/proc/${pid}/autogroup`, 'utf8'))?.[1]
  /** A start may compute. */
  const priorities = (list: () => Promise<Jailed[]>) =>
    createPriorities(
      list,
      createPriorityWatch(async () => -100),
    )
  const again = (look: () => Promise<void>) => async () => {
    await look()
    await sleep(200)
  }

  beforeAll(async () => {
    host = await LocalHost.make({ isJailed: true })
  })
  afterAll(() => host.remove())

  test('is the lowest while it is busy, but for the gateway where only root could give it back', async () => {
    const [busy, resting] = [await started(), await started()]
    const look = again(priorities(async () => [await jailed(busy), await jailed(resting)]))
    const { gateway } = await jailed(busy)
    const usual = getPriority(gateway.pid)
    const other = await run(resting, 'setTimeout(() => {}, 30e3)')
    const { pid, ended } = await run(busy, computing)
    expect(prioritiesOf(pid)).toEqual(new Set([usual]))
    const isGrouped = existsSync('/proc/self/autogroup')
    const sessions = new Set<string | undefined>()
    await until('the lowest priority', async () => {
      await look()
      if (isGrouped) sessions.add(prioritySession(gateway.pid))
      return getPriority(pid) === lowest
    })
    expect(prioritiesOf(pid)).toEqual(new Set([lowest]))
    expect(prioritiesOf(gateway.pid)).toEqual(new Set([usual]))
    expect(prioritiesOf(other.pid)).toEqual(new Set([usual]))
    if (!isGrouped) {
      process.kill(pid)
      return
    }
    expect(sessions).toContain('15')
    await until('the lowest of its sessions', async () => {
      await look()
      return [pid, gateway.pid].every((one) => prioritySession(one) === String(lowest))
    })
    expect(prioritySession(other.pid)).toBe('5')
    process.kill(pid)
    await ended
    await until('the usual one of its sessions', () => look().then(() => prioritySession(gateway.pid) === '5'))
  })

  test('stays as it is with a low one, and where another process has the pid of its record by now', async () => {
    const busy = await started()
    const sandbox = await jailed(busy)
    const isLowest = async (found: Jailed, priority: Priority = 'lowest') => {
      await createPriorities(async () => [found], saying(priority))()
      return getPriority(pid) === lowest
    }
    const { pid, ended } = await run(busy, 'setTimeout(() => {}, 30e3)')
    expect(await isLowest({ ...sandbox, init: { ...sandbox.init, startTime: '1' } })).toBe(false)
    expect(await isLowest(sandbox, 'low')).toBe(false)
    expect(await isLowest(sandbox)).toBe(true)
    process.kill(pid)
    await ended
  })
})
