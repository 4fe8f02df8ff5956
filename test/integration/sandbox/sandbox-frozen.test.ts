import { randomUUID } from 'node:crypto'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type ControlGroup, entriesOf, processesIn, usageOf } from '#sandbox/local/control-group.ts'
import { sandboxFolder } from '#sandbox/local/folder.ts'
import { hasControlGroups, LocalHost } from '../../support/local-host.ts'
import { present } from '../../support/present.ts'
import { openSwap, swapFault } from '../../support/swap.ts'
import { until } from '../../support/until.ts'

const within = () => AbortSignal.timeout(60_000)
const megabyte = 1024 * 1024
const fault = hasControlGroups ? swapFault() : 'there are no control groups'

describe.skipIf(fault !== null)(`a frozen local sandbox${fault ? ` (skipped: ${fault})` : ''}`, () => {
  let host: LocalHost
  let closeSwap: () => Promise<void>
  beforeAll(async () => {
    closeSwap = await openSwap()
    host = await LocalHost.make()
  })
  afterAll(async () => {
    await host.remove()
    await closeSwap()
  })

  const observe = (id: string) => host.driver.observe(id, within())
  const groupOf = async (id: string) => present(await sandboxFolder(join(host.dataDir, 'sandboxes'), id).controlGroup())
  const pidOf = async (id: string): Promise<number> => {
    const { endpoint } = await observe(id)
    if (endpoint?.kind !== 'tcp') throw new Error('it has no address')
    return ((await (await fetch(`http://127.0.0.1:${endpoint.port}/whoami`)).json()) as { pid: number }).pid
  }
  async function frozen(): Promise<{ id: string; pid: number; group: ControlGroup }> {
    const id = randomUUID()
    await host.driver.create(host.specOf(id), within())
    await host.driver.start(id, within())
    let pid = 0
    await until('its gateway to answer', async () => {
      pid = await pidOf(id).catch(() => 0)
      return pid > 0
    })
    expect(await host.driver.freeze?.(id, within())).toBe(true)
    return { id, pid, group: await groupOf(id) }
  }

  test('it keeps its processes and little memory, and goes on when it is thawed', async () => {
    const { id, pid, group } = await frozen()
    expect(await observe(id)).toMatchObject({ state: 'frozen', endpoint: null })
    const listed: unknown[] = []
    for await (const each of host.driver.list(within())) listed.push(each)
    expect(listed).toContainEqual({ id, state: 'frozen' })
    expect(await host.driver.orphans(within())).toEqual([])
    expect(await processesIn(group)).toContain(pid)
    expect(present((await usageOf(group)).memoryBytes)).toBeLessThan(16 * megabyte)
    expect(await host.driver.freeze?.(id, within())).toBe(true)
    expect(await LocalHost.on(host.dataDir).driver.observe(id, within())).toMatchObject({ state: 'frozen' })

    await host.driver.thaw?.(id, within())
    expect((await observe(id)).state).toBe('running')
    expect(await pidOf(id)).toBe(pid)
  })

  test('a stop ends its gateway with its own exit code, and a start starts another', async () => {
    const { id, pid } = await frozen()
    await host.driver.stop(id, { graceMs: 10_000 }, within())
    expect(await observe(id)).toMatchObject({ state: 'stopped', exit: { code: 0 } })
    expect(existsSync(`/proc/${pid}`)).toBe(false)
    await host.driver.start(id, within())
    await until('its gateway to answer', () =>
      pidOf(id).then(
        () => true,
        () => false,
      ),
    )
  })

  test('a destroy leaves no process and no group', async () => {
    const { id, pid, group } = await frozen()
    await host.driver.destroy(id, within())
    expect((await observe(id)).state).toBe('absent')
    expect([existsSync(`/proc/${pid}`), entriesOf(group).filter((entry) => existsSync(entry))]).toEqual([false, []])
  })

  test('Chowder ends it when it stops its agents', async () => {
    const { id } = await frozen()
    await host.driver.stopAll({ graceMs: 5000 }, within())
    expect((await observe(id)).state).toBe('stopped')
  })

  test('a connection to it waits, and is answered after the thaw', async () => {
    const { id, pid } = await frozen()
    await host.driver.thaw?.(id, within())
    const { endpoint } = await observe(id)
    await host.driver.freeze?.(id, within())
    const port = endpoint?.kind === 'tcp' ? endpoint.port : 0
    const answer = fetch(`http://127.0.0.1:${port}/whoami`).then((response) => response.json())
    expect(await Promise.race([answer, sleep(500, 'waits')])).toBe('waits')
    await host.driver.thaw?.(id, within())
    expect(await answer).toMatchObject({ pid })
  })
})
