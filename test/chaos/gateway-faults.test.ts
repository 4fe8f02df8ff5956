import { readFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { maxAttempts } from '#lifecycle/attempt/failures.ts'
import { defaultTimeouts } from '#lifecycle/attempt/step.ts'
import { defaultIntervals } from '#lifecycle/worker.ts'
import { type Api, api, say, sessionPath, waitForStatus } from '../support/api-client.ts'
import { findGateway, type GatewayProcess } from '../support/chowder-process.ts'
import { FakeDriver } from '../support/fake-driver.ts'
import { type FakeGateway, startFakeGateway } from '../support/fake-gateway.ts'
import { openStubSandboxes, startStubProvider } from '../support/stub-agents.ts'
import { openProxy, type TcpProxy } from '../support/tcp-proxy.ts'
import { openTestChowder, type TestChowder, type TestChowderOptions } from '../support/test-chowder.ts'
import { until } from '../support/until.ts'

/** Chowder with real sandboxes, in which OpenClaw is a stub. */
async function openStubbed(options: Omit<TestChowderOptions, 'sandboxes'>) {
  const { driver, close } = await openStubSandboxes()
  const provider = await startStubProvider()
  const chowder = await openTestChowder({ ...options, sandboxes: driver, relayUrl: provider.url })
  await chowder.startWorker()
  const url = await chowder.app.listen({ host: '127.0.0.1', port: 0 })
  const client = api(url, (await chowder.signUp()).key)
  return {
    client,
    behave: provider.behave,
    create: async (): Promise<string> => (await client.post('/v1/instances', { name: 'x' })).body.id,
    gatewayOf: async (id: string) => {
      const gateway = await findGateway(id)
      if (!gateway) throw new Error(`${id} has no gateway`)
      return gateway
    },
    /** How often its gateway was started, by what it wrote. */
    starts: async (id: string) =>
      (await driver.readLog(id, { lines: 1000 }, AbortSignal.timeout(10_000))).lines.filter(
        ({ text }) => text === 'starting',
      ).length,
    close: async () => {
      await chowder.close()
      await provider.close()
      await close()
    },
  }
}

type Stubbed = Awaited<ReturnType<typeof openStubbed>>

const read = async (client: Api, id: string) => (await client.get(`/v1/instances/${id}`)).body
const eventsOf = async (client: Api, id: string): Promise<{ type: string; reason: string | null }[]> =>
  (await client.get(`/v1/instances/${id}/events?limit=100`)).body
const secondsSince = (start: number) => (performance.now() - start) / 1000

/** Connections to a gateway that are open at both ends. */
async function connectionsTo({ endpoint }: GatewayProcess): Promise<number> {
  const rowsOf = async (name: string) =>
    (await readFile(`/proc/net/${name}`, 'utf8')).split('\n').map((line) => line.trim().split(/\s+/))
  if (endpoint.kind === 'unix') {
    return (await rowsOf('unix')).filter((row) => row[5] === '03' && row[7] === endpoint.path).length
  }
  const remote = `:${endpoint.port.toString(16).toUpperCase().padStart(4, '0')}`
  return (await rowsOf('tcp')).filter(([, , to, state]) => to?.endsWith(remote) && state === '01').length
}

describe('a gateway that fails under the limits as they are', () => {
  const noticedWithinSeconds = 15
  /** It is noticed in 15 s, then watched for half a minute. */
  const hungSeconds = { least: 30, most: 60 }
  let chowder: Stubbed

  beforeAll(async () => {
    chowder = await openStubbed({ intervals: defaultIntervals, timeouts: defaultTimeouts })
  })
  afterAll(() => chowder?.close())

  it('F14: a gateway that is killed is detected within 15 s and restarted', async () => {
    chowder.behave({})
    const id = await chowder.create()
    await waitForStatus(chowder.client, id, 'running')
    const killed = await chowder.gatewayOf(id)
    const start = performance.now()
    process.kill(killed.pid, 'SIGKILL')
    const isNoticed = async () => (await eventsOf(chowder.client, id)).find(({ type }) => type === 'instance.due')
    const noticed = await until('the death to be noticed', isNoticed, 30_000)
    expect(secondsSince(start)).toBeLessThan(noticedWithinSeconds)
    expect(noticed.reason).toContain('does not run any more')
    const back = async () => {
      const gateway = await findGateway(id)
      return gateway && gateway.pid !== killed.pid && (await read(chowder.client, id)).status === 'running'
    }
    await until('the gateway to be back', back, 30_000)
    const ended = (await eventsOf(chowder.client, id)).find(({ type }) => type === 'instance.gateway_ended')
    expect(ended?.reason).toContain('exit code 137')
    expect(await say(chowder.client, sessionPath(id), 'hello')).toBe('Hello')
    await chowder.client.delete(`/v1/instances/${id}`)
  })

  it('F14: a gateway that exits after each start is an error after the fifth, with its exit code and last output', {
    tags: ['long'],
  }, async () => {
    chowder.behave({ exitAfterMs: 300, exitCode: 3 })
    const id = await chowder.create()
    const isError = async () => (await read(chowder.client, id)).status === 'error'
    await until('the instance to be given up', isError, 120_000)
    const { error_message: reason } = await read(chowder.client, id)
    expect(reason).toContain('exit code 3')
    expect(reason).toContain('out of lobsters')
    expect(await chowder.starts(id)).toBe(maxAttempts)
    await sleep(2 * defaultIntervals.driftEveryMs)
    expect(await chowder.starts(id)).toBe(maxAttempts)
    expect((await read(chowder.client, id)).status).toBe('error')
    // A new intent is a new chance.
    chowder.behave({})
    await chowder.client.post(`/v1/instances/${id}/start`)
    await waitForStatus(chowder.client, id, 'running')
    await chowder.client.delete(`/v1/instances/${id}`)
  })

  it('F15: a gateway that hangs is restarted within 30 to 60 s, its turns answer 504 then, and none stays open', async () => {
    chowder.behave({})
    const id = await chowder.create()
    await waitForStatus(chowder.client, id, 'running')
    expect(await say(chowder.client, sessionPath(id), 'hello')).toBe('Hello')
    const hung = await chowder.gatewayOf(id)
    process.kill(hung.pid, 'SIGSTOP')
    const start = performance.now()
    // Half of them are in one line, in which only the first one is asked.
    const turn = async (_: unknown, index: number) => {
      const path = sessionPath(id, index % 2 === 0 ? 'main' : `session-${index}`)
      const { status, body } = await chowder.client.post(path, { model: 'openclaw', input: 'hello' })
      return { status, code: body.error?.code, isInTime: secondsSince(start) < hungSeconds.most }
    }
    const turns = Promise.all(Array.from({ length: 30 }, turn))
    const restarted = async () => ![undefined, hung.pid].includes((await findGateway(id))?.pid)
    await until('the gateway to be restarted', restarted, 90_000)
    expect(secondsSince(start)).toBeGreaterThan(hungSeconds.least)
    expect(secondsSince(start)).toBeLessThan(hungSeconds.most)
    for (const answer of await turns) expect(answer).toEqual({ status: 504, code: 'gateway_timeout', isInTime: true })
    await until('an answer', () => say(chowder.client, sessionPath(id), 'hello').catch(() => ''), 30_000)
    expect(await chowder.starts(id)).toBe(2)
    // A health check may have one.
    await until('the connections to be closed', async () => (await connectionsTo(hung)) <= 1, 10_000)
    await chowder.client.delete(`/v1/instances/${id}`)
  }, 240_000)
})

describe('a gateway that works and answers nothing meanwhile', () => {
  let chowder: Stubbed

  beforeAll(async () => {
    chowder = await openStubbed({ intervals: defaultIntervals, timeouts: defaultTimeouts })
  })
  afterAll(() => chowder?.close())

  it.each(['compute', 'run'])(
    'survives 170 s of it with its turns (it is asked to %s)',
    { tags: ['long'], timeout: 300_000 },
    async (verb) => {
      chowder.behave({})
      const id = await chowder.create()
      await waitForStatus(chowder.client, id, 'running')
      const { pid } = await chowder.gatewayOf(id)
      const start = performance.now()
      const working = say(chowder.client, sessionPath(id), `${verb} for 170 s`)
      await until('it to be shown', async () => (await read(chowder.client, id)).step === 'busy', 60_000)
      const others = ['main', 'other'].map((session) => say(chowder.client, sessionPath(id, session), 'hello'))
      for (; secondsSince(start) < 165; await sleep(1000)) {
        expect(await read(chowder.client, id)).toMatchObject({ status: 'running', step: 'busy' })
      }
      expect(await Promise.all([working, ...others])).toEqual(['Hello', 'Hello', 'Hello'])
      expect(secondsSince(start)).toBeGreaterThan(169)
      // The stub has no RPC: it is not looked at any further.
      expect([(await chowder.gatewayOf(id)).pid, await chowder.starts(id)]).toEqual([pid, 1])
      await chowder.client.delete(`/v1/instances/${id}`)
    },
  )
})

describe('a gateway that starts slowly', () => {
  const timeouts = { startWithoutProgressMs: 8000, startMs: 24_000 }
  let chowder: Stubbed

  beforeAll(async () => {
    chowder = await openStubbed({ timeouts })
  })
  afterAll(() => chowder?.close())

  it('F16: is not interrupted while it makes progress', async () => {
    chowder.behave({ readyAfterMs: 2 * timeouts.startWithoutProgressMs, progressEveryMs: 200 })
    const id = await chowder.create()
    const begun = await until('its process', () => findGateway(id), 30_000)
    await waitForStatus(chowder.client, id, 'running')
    expect((await chowder.gatewayOf(id)).pid).toBe(begun.pid)
    expect(await chowder.starts(id)).toBe(1)
    await chowder.client.delete(`/v1/instances/${id}`)
  })

  it('F16: is stopped at the limit in spite of its progress, and started again', async () => {
    chowder.behave({ readyAfterMs: 10 * timeouts.startMs, progressEveryMs: 200 })
    const start = performance.now()
    const id = await chowder.create()
    const begun = await until('its process', () => findGateway(id), 30_000)
    const failed = await until(
      'a failed attempt',
      async () => (await eventsOf(chowder.client, id)).find(({ type }) => type === 'instance.attempt_failed'),
      120_000,
    )
    expect(secondsSince(start)).toBeGreaterThan(0.8 * (timeouts.startMs / 1000))
    expect(failed.reason).toMatch(/not ready after (2[4-9]|[345]\d) s/)
    expect((await findGateway(id))?.pid).not.toBe(begun.pid)
    chowder.behave({})
    await waitForStatus(chowder.client, id, 'running')
    expect(await chowder.starts(id)).toBeGreaterThan(1)
    await chowder.client.delete(`/v1/instances/${id}`)
  })
})

describe('an agent beyond a network that fails', () => {
  let gateway: FakeGateway
  let proxy: TcpProxy
  let driver: FakeDriver
  let chowder: TestChowder
  let key: string

  beforeAll(async () => {
    gateway = await startFakeGateway({})
    if (gateway.endpoint.kind !== 'tcp') throw new Error('no port to stand before')
    proxy = await openProxy(gateway.endpoint)
    driver = new FakeDriver(() => ({ kind: 'tcp', host: proxy.host, port: proxy.port }))
    chowder = await openTestChowder({ sandboxes: driver, timeouts: { hungMs: 1000 } })
    await chowder.startWorker()
    key = (await chowder.signUp()).key
  })
  afterAll(async () => {
    await chowder?.close()
    await proxy?.close()
    await gateway?.close()
  })

  const create = async (): Promise<string> =>
    (await chowder.call('POST', '/v1/instances', { key, body: { name: 'x' } })).body.id
  const shown = async (id: string) => (await chowder.call('GET', `/v1/instances/${id}`, { key })).body
  const isSettledAs = (id: string, status: string) =>
    until(
      `${id} to be ${status}`,
      async () => {
        const body = await shown(id)
        return body.status === status && body.step === null ? body : null
      },
      30_000,
    )
  const looks = (id: string) => driver.calls.filter((made) => made.id === id && made.method === 'activity').length

  async function staysAsItIs(fault: 'cut' | 'freeze'): Promise<void> {
    const id = await create()
    await isSettledAs(id, 'running')
    const before = driver.calls.length
    proxy[fault]()
    await until(
      'more looks at it than an instance has attempts',
      async () => {
        // As if the pauses between them had passed.
        await chowder.database.pool.query('UPDATE instances SET next_attempt_at = now() WHERE id = $1', [id])
        expect((await shown(id)).status).toBe('running')
        return looks(id) > 2 * (maxAttempts + 2) // in each of them it is asked twice
      },
      120_000,
    )
    const { body: events } = await chowder.call('GET', `/v1/instances/${id}/events`, { key })
    expect(events).toContainEqual(
      expect.objectContaining({ to_status: 'running', reason: expect.stringContaining('cannot reach it') }),
    )
    await until('the step to say so', async () => (await shown(id)).step === 'checkHealth', 10_000)
    const touched = driver.calls
      .slice(before)
      .filter((made) => ['create', 'start', 'stop', 'destroy'].includes(made.method))
    expect(touched).toEqual([])

    // An agent that dies while it cannot be reached has all its attempts.
    if (fault === 'cut') driver.die(id)
    proxy.heal()
    await chowder.database.pool.query('UPDATE instances SET next_attempt_at = now() WHERE id = $1', [id])
    if (fault === 'cut') await until('its start', () => driver.starts.get(id) === 2, 30_000)
    expect(await isSettledAs(id, 'running')).toMatchObject({ error_message: null })
    expect(driver.starts.get(id)).toBe(fault === 'cut' ? 2 : 1)
    expect(driver.creations.get(id)).toBe(1)
    await chowder.call('DELETE', `/v1/instances/${id}`, { key })
  }

  it('F26: stays as it is behind a cut, however long it lasts', () => staysAsItIs('cut'), 180_000)
  it('F26: stays as it is behind a freeze, however long it lasts', { tags: ['long'], timeout: 180_000 }, () =>
    staysAsItIs('freeze'),
  )

  it('F14: a gateway that runs out of memory at each start is an error with that reason', async () => {
    const id = await create()
    const isError = async () => {
      const { status } = await shown(id)
      const sandbox = driver.sandboxes.get(id)
      if (status === 'running' && sandbox?.running) {
        driver.output = 'all lobsters\n'
        driver.die(id, null, true)
      }
      await chowder.database.pool.query('UPDATE instances SET next_attempt_at = now() WHERE id = $1', [id])
      return status === 'error'
    }
    await until('the instance to be given up', isError, 60_000)
    const { error_message: reason } = await shown(id)
    expect(reason).toContain('oom')
    expect(reason).toContain('all lobsters')
    expect(driver.starts.get(id)).toBe(maxAttempts)
  }, 90_000)
})
