import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import OpenAI from 'openai'
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest'
import { reachEmbeddedPostgres } from '#database/embedded.ts'
import { connectGateway, type GatewayClient } from '#openclaw/gateway/gateway.ts'
import { entriesOf, processesIn, usageOf } from '#sandbox/local/control-group.ts'
import { sandboxFolder } from '#sandbox/local/folder.ts'
import { startAgent, type TestAgent } from '../support/agent.ts'
import { findGateway } from '../support/chowder-process.ts'
import { hasControlGroups } from '../support/local-host.ts'
import { present } from '../support/present.ts'
import { hasSwap, openSwap, swapFault } from '../support/swap.ts'
import { until } from '../support/until.ts'

let agent: TestAgent
beforeAll(async () => {
  agent = await startAgent({ fields: { idle_timeout_seconds: 60 } })
})
afterAll(() => agent?.close())

const read = async () => (await agent.client.get(`/v1/instances/${agent.id}`)).body
const untilAsleep = () => until('the agent to sleep', async () => (await read()).step === 'asleep', 180_000)

/** Why sleeping agents are stopped here; null if they are frozen where there is swap. */
const otherFault =
  inject('agentDockerHost') !== null || inject('agentCluster') !== null
    ? 'these agents are in containers'
    : hasControlGroups
      ? null
      : 'there are no control groups'

function say(input: string) {
  const baseURL = `${agent.chowder.url}/v1/instances/${agent.id}`
  return new OpenAI({ baseURL, apiKey: agent.key, maxRetries: 0 }).responses.create({ model: 'openclaw', input })
}

it('a real agent sleeps when it is idle, and a turn wakes it with its memory', async () => {
  await say('my number is seven')
  await untilAsleep()
  expect(await read()).toMatchObject({ status: 'stopped', stopped_for: 'idle', wakes_at: null })
  if (otherFault !== null || !hasSwap()) expect(await findGateway(agent.id)).toBeNull()

  const [one, other] = await Promise.all([say('which number is it?'), say('and now?')])
  expect([one.status, other.status]).toEqual(['completed', 'completed'])
  const asked = present(agent.provider.requests.find(({ last }) => last.includes('which number is it?')))
  expect(JSON.stringify(asked.body)).toContain('my number is seven')
  const { body: events } = await agent.client.get(`/v1/instances/${agent.id}/events?type=instance.start`)
  expect(events).toMatchObject([{ reason: 'woken by a request.' }])
})

it('a real agent sleeps until its own cron needs it, and is started for it', async () => {
  const { endpoint, token } = present(await findGateway(agent.id))
  const gateway = await connectGateway(endpoint, token, { signal: AbortSignal.timeout(30_000), timeoutMs: 30_000 })
  const at = Date.now() + 30 * 60_000
  await gateway.call('cron.add', {
    name: 'tick',
    schedule: { kind: 'at', at: new Date(at).toISOString() },
    sessionTarget: 'isolated',
    wakeMode: 'now',
    payload: { kind: 'agentTurn', message: 'tick' },
    delivery: { mode: 'none' },
  })
  gateway.close()
  const jobs = `/v1/instances/${agent.id}/cron_jobs`
  const { body: listed } = await agent.client.get(jobs)
  const tick = { name: 'tick', kind: 'at', input: 'tick', paused: false, last_at: null, last_status: null }
  expect(listed).toEqual([{ ...tick, id: expect.any(String), when: expect.any(String), next_at: expect.any(String) }])
  expect(Date.parse(listed[0].next_at)).toBe(at)
  const job = `${jobs}/${listed[0].id}`
  expect((await agent.client.patch(job, { paused: true })).body).toMatchObject({ ...tick, paused: true })
  expect((await agent.client.patch(`${jobs}/unknown`, { paused: true })).status).toBe(404)
  expect((await agent.client.patch(job, { paused: false })).body).toEqual(listed[0])
  await untilAsleep()
  expect(Date.parse((await read()).wakes_at)).toBe(at - 90_000)

  const database = new pg.Client(present(await reachEmbeddedPostgres(agent.dataDir)))
  await database.connect()
  await database.query('UPDATE instances SET wakes_at = now() WHERE id = $1', [agent.id]).finally(() => database.end())
  await until('the agent to run', async () => (await read()).status === 'running', 120_000)
  expect(await read()).toMatchObject({ stopped_for: null, wakes_at: null })
})

const frozenFault = otherFault ?? swapFault()

describe.skipIf(frozenFault !== null)(`with swap${frozenFault ? ` (skipped: ${frozenFault})` : ''}`, () => {
  let closeSwap: (() => Promise<void>) | undefined
  let gateway: GatewayClient | undefined
  beforeAll(async () => {
    closeSwap = await openSwap()
  })
  afterAll(async () => {
    gateway?.close()
    await agent.client.delete(`/v1/instances/${agent.id}`)
    await until('its end', () => !existsSync(join(agent.dataDir, 'sandboxes', agent.id)), 60_000)
    await closeSwap?.()
  })
  const groupOf = async () => present(await sandboxFolder(join(agent.dataDir, 'sandboxes'), agent.id).controlGroup())
  const residentOf = (pid: number) =>
    Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0) / 1024
  /** The memory of all processes of the agent, in MB, and what its control group counts. */
  async function memory() {
    const group = await groupOf()
    const pids = await processesIn(group)
    const counted = present((await usageOf(group)).memoryBytes) / 1024 / 1024
    return { resident: pids.reduce((sum, pid) => sum + residentOf(pid), 0), counted }
  }

  it('a real agent is frozen, and a turn wakes the same processes, with their memory and connections', async () => {
    await say('my colour is green')
    const { pid, endpoint, token } = present(await findGateway(agent.id))
    gateway = await connectGateway(endpoint, token, { signal: AbortSignal.timeout(300_000), timeoutMs: 30_000 })
    const before = await memory()
    await untilAsleep()
    expect(await read()).toMatchObject({ status: 'stopped', stopped_for: 'idle' })
    const frozen = await memory()
    console.log('memory in MB', { before, frozen })
    expect(frozen.counted).toBeLessThan(64)
    expect(frozen.resident).toBeLessThan(before.resident / 2)

    const { output_text, status } = await say('which colour is it?')
    expect([status, output_text.length > 0]).toEqual(['completed', true])
    const asked = present(agent.provider.requests.find(({ last }) => last.includes('which colour is it?')))
    expect(JSON.stringify(asked.body)).toContain('my colour is green')
    expect(present(await findGateway(agent.id)).pid).toBe(pid)
    expect(await gateway.call('channels.status')).toBeTypeOf('object')
  })

  it('a real agent is deleted while it is frozen', async () => {
    const { pid } = present(await findGateway(agent.id))
    await untilAsleep()
    expect(present(await findGateway(agent.id)).pid).toBe(pid)
    const group = await groupOf()
    expect((await agent.client.delete(`/v1/instances/${agent.id}`)).status).toBeLessThan(300)
    const folder = join(agent.dataDir, 'sandboxes', agent.id)
    await until('its end', () => !existsSync(folder), 60_000)
    expect([existsSync(`/proc/${pid}`), entriesOf(group).filter((entry) => existsSync(entry))]).toEqual([false, []])
  })
})
