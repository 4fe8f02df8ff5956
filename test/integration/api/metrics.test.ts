import { setTimeout as sleep } from 'node:timers/promises'
import { pino } from 'pino'
import { afterAll, describe, expect, test, vi } from 'vitest'
import { storeFindings } from '#commands/doctor/report.ts'
import { createBacklogMetrics } from '#lifecycle/queue/backlog.ts'
import { type MetricSource, requestDuration, serveMetrics, stepDuration, timeToRunning } from '#platform/metrics.ts'
import { SandboxUnavailableError } from '#sandbox/driver.ts'
import { measureDriver } from '#sandbox/measured.ts'
import { openCloudDriver } from '../../support/cloud-driver.ts'
import { startFakeCloud } from '../../support/fake-cloud.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const log = pino({ level: 'silent' })
const anywhere = { host: '127.0.0.1', port: 0 }

let id: string

const scrape = async (port = served.port): Promise<string> => (await fetch(`http://127.0.0.1:${port}/metrics`)).text()

/** The sum of all series with this name and these labels; null when there is none. */
async function read(name: string, labels: Record<string, string> = {}): Promise<number | null> {
  const wanted = Object.entries(labels).map(([label, value]) => `${label}="${value}"`)
  const values = (await scrape())
    .split('\n')
    .filter((line) => new RegExp(`^${name}[ {]`).test(line) && wanted.every((one) => line.includes(one)))
    .map((line) => Number(line.split(' ').at(-1)))
  return values.length === 0 ? null : values.reduce((sum, value) => sum + value, 0)
}

/** Over a connection, since a request is counted after its answer was sent. */
async function call(method: 'GET' | 'POST' | 'DELETE', path: string, body?: unknown) {
  const answer = await fetch(`${url}/v1/instances${path}`, {
    method,
    headers: {
      authorization: `Bearer ${organization.key}`,
      ...(body !== undefined && { 'content-type': 'application/json' }),
    },
    ...(body !== undefined && { body: JSON.stringify(body) }),
  })
  const text = await answer.text()
  return { status: answer.status, text, body: text.startsWith('{') ? JSON.parse(text) : undefined }
}
const hasStatus = (status: string) =>
  until(`it to be ${status}`, async () => (await call('GET', `/${id}`)).body.status === status)

const inRegion = (region: string | null) =>
  chowder.database.pool.query('UPDATE instances SET region = $2 WHERE id = $1', [id, region])

// Other files of this process have counted too.
for (const figure of [requestDuration, stepDuration, timeToRunning]) figure.reset()
const cloud = await startFakeCloud()
const sandboxes = measureDriver(openCloudDriver(cloud.url, 'the test'), 'eu-1')
const chowder = await openTestChowder({ sandboxes })
const organization = await chowder.signUp()
const url = await chowder.app.listen({ host: '127.0.0.1', port: 0 })
const served = await serveMetrics(
  anywhere,
  [createBacklogMetrics({ db: chowder.database.db, queue: chowder.queue, counting: { everyMs: 0, pause: 0 } })],
  log,
)
afterAll(async () => {
  await served.close()
  await chowder.close()
  await cloud.close()
})

describe('metrics', () => {
  test('show waiting work while there is no worker, and none once a worker runs', async () => {
    id = (await call('POST', '', { name: 'x' })).body.id
    await until('the job', async () => (await read('chowder_queue_waiting_jobs')) === 1)
    await sleep(100)
    expect(await read('chowder_due_instances', { region: '' })).toBe(1)
    await inRegion('eu-1')
    await until('the region', async () => (await read('chowder_due_instances', { region: 'eu-1' })) === 1)
    expect(await read('chowder_due_instances', { region: '' })).toBe(0)
    await inRegion(null)
    expect(await read('chowder_oldest_due_seconds')).toBeGreaterThan(0.05)
    expect(await read('chowder_queue_waiting_jobs')).toBe(1)
    expect(await read('chowder_queue_oldest_waiting_seconds')).toBeGreaterThan(0.05)
    expect(await read('chowder_instances', { status: 'provisioning' })).toBe(1)
    await chowder.startWorker()
    await hasStatus('running')
    await until('nothing to wait', async () => (await read('chowder_due_instances', { region: '' })) === 0)
    expect(await read('chowder_oldest_due_seconds')).toBe(0)
    expect(await read('chowder_queue_waiting_jobs')).toBe(0)
    expect(await read('chowder_instances', { status: 'running' })).toBe(1)
    expect(await read('chowder_instances', { status: 'provisioning' })).toBe(0)
  })

  test('show what the doctor found last', async () => {
    expect(await read('chowder_doctor_findings', { area: 'secrets' })).toBeNull()
    await storeFindings(chowder.database.db, [{ area: 'secrets', what: 'It is missing.', whatToDo: 'Restore it.' }])
    expect(await read('chowder_doctor_findings', { area: 'secrets' })).toBe(1)
    expect(await read('chowder_doctor_findings', { area: 'queue' })).toBe(0)
    expect(await read('chowder_doctor_last_run_timestamp_seconds')).toBeGreaterThan(Date.now() / 1000 - 60)
  })

  test('count requests by route and status, also those without a route', async () => {
    const created = { method: 'POST', route: '/v1/instances', status: '201' }
    expect(await read('chowder_http_request_duration_seconds_count', created)).toBe(1)
    await fetch(`${url}/no/such/path`)
    await fetch(`${url}/no/such/other`)
    const unrouted = { route: 'none', status: '404' }
    await until('both', async () => (await read('chowder_http_request_duration_seconds_count', unrouted)) === 2)
  })

  test('count a turn with the time that Chowder adds, and a stream while it is open', async () => {
    const before = (await read('chowder_turn_added_seconds_count')) ?? 0
    const counted = async () => (await read('chowder_turn_added_seconds_count')) ?? 0
    const { status } = await call('POST', `/${id}/responses`, { model: 'openclaw', input: 'hello' })
    expect(status).toBe(200)
    // A turn is measured after its answer was sent, also the last one of the file before in this process.
    await until('the turn', async () => (await counted()) >= before + 1)
    // A stream that begins before its agent answers, as one may on a busy machine, is not measured.
    await until('the stream', async () => {
      const streamed = await call('POST', `/${id}/responses`, { model: 'openclaw', input: 'hello', stream: true })
      expect(streamed.text).toContain('event: response.completed')
      return (await counted()) >= before + 2
    })
    expect(await read('chowder_turn_added_seconds_sum')).toBeGreaterThan(0)
    await until('the stream to be over', async () => (await read('chowder_open_streams')) === 0)
  })

  test('measure steps, and the time from a request to running', async () => {
    for (const step of ['createSandbox', 'writeConfig', 'startGateway', 'checkHealth']) {
      expect(await read('chowder_reconcile_step_duration_seconds_count', { step, outcome: 'done' }), step).toBe(1)
    }
    expect(await read('chowder_time_to_running_seconds_count', { intent: 'create' })).toBe(1)
    expect(await read('chowder_time_to_running_seconds_sum', { intent: 'create' })).toBeGreaterThan(0.1)
    await call('POST', `/${id}/stop`)
    await hasStatus('stopped')
    await call('POST', `/${id}/start`)
    await hasStatus('running')
    // It is measured after the row is settled.
    await until(
      'the figure',
      async () => (await read('chowder_time_to_running_seconds_count', { intent: 'start' })) === 1,
    )
  })

  test.each([
    ['ended', { code: 1, oom: false }],
    ['oom', { code: 137, oom: true }],
  ])('a gateway that came back by itself is a restart with its reason: %s', async (reason, exit) => {
    const count = async () => (await read('chowder_sandbox_restarts_total', { reason })) ?? 0
    const [before, toRunning] = [await count(), await read('chowder_time_to_running_seconds_count')]
    await cloud.die(id, exit)
    await until('the restart', async () => (await count()) === before + 1)
    await hasStatus('running')
    expect(await read('chowder_time_to_running_seconds_count'), 'nobody waited for it').toBe(toRunning)
  })

  test('count the failures of the platform by call, apart from its successes', async () => {
    const before = (await read('chowder_driver_call_duration_seconds_count', { outcome: 'unavailable' })) ?? 0
    const driver = measureDriver(openCloudDriver(cloud.url, 'the test'), 'eu-1')
    cloud.fail({ kind: 'server error', calls: ['exec', 'files'], times: 2 })
    await expect(driver.exec(id, ['true'], { timeoutMs: 1000 }, AbortSignal.timeout(5000))).rejects.toThrow(
      SandboxUnavailableError,
    )
    await expect(driver.files(id).stat('x', AbortSignal.timeout(5000))).rejects.toThrow(SandboxUnavailableError)
    expect(await read('chowder_driver_call_duration_seconds_count', { outcome: 'unavailable' })).toBe(before + 2)
    expect(
      await read('chowder_driver_call_duration_seconds_count', { call: 'files.stat', outcome: 'unavailable' }),
    ).toBe(1)
    expect(await read('chowder_driver_call_duration_seconds_count', { call: 'start', outcome: 'ok' })).toBeGreaterThan(
      2,
    )
  })

  test('show a delete that has failed 10 times until it succeeds', { timeout: 90_000 }, async () => {
    expect(await read('chowder_failing_ends')).toBe(0)
    cloud.fail({ kind: 'server error', calls: ['destroy'], times: Number.POSITIVE_INFINITY })
    await call('DELETE', `/${id}`)
    await until(
      'it to fail',
      async () => {
        await chowder.database.pool.query(
          'UPDATE instances SET next_attempt_at = now() WHERE lease_until < now() AND attempts < 10',
        )
        return (await read('chowder_failing_ends')) === 1
      },
      60_000,
    )
    expect(await read('chowder_instances', { status: 'terminated' }), 'it is not gone yet').toBe(1)
    cloud.heal()
    await until('it to be done', async () => {
      await chowder.database.pool.query('UPDATE instances SET next_attempt_at = now() WHERE lease_until < now()')
      return (await read('chowder_failing_ends')) === 0
    })
    expect(await read('chowder_instances', { status: 'terminated' })).toBe(0)
  })

  test('R10: count the instances once in 15 s, however often they are scraped', async () => {
    const { db } = chowder.database
    const source = createBacklogMetrics({ db, queue: chowder.queue })
    const counted = async () =>
      (await source.metrics()).split('\n').filter((line) => line.startsWith('chowder_instances'))
    const first = await counted()
    const created = (await call('POST', '', { name: 'y' })).body.id
    expect(await counted()).toEqual(first)
    const later = performance.now() + 3_600_000
    const clock = vi.spyOn(performance, 'now').mockReturnValue(later)
    expect(await counted().finally(() => clock.mockRestore())).not.toEqual(first)
    await call('DELETE', `/${created}`)
  })

  test('name no instance, organization or key', async () => {
    const text = await scrape()
    for (const secret of [id, organization.id, organization.key]) expect(text).not.toContain(secret)
    expect(text).not.toMatch(/[0-9a-f]{8}-[0-9a-f]{4}/)
  })

  test('leave out a source that fails or hangs, and serve the rest', async () => {
    const broken: MetricSource = { metrics: () => Promise.reject(new Error('away')) }
    const hanging: MetricSource = { metrics: () => new Promise(() => {}) }
    const fine: MetricSource = { metrics: async () => 'fine 1\n' }
    const { port, close } = await serveMetrics(anywhere, [broken, hanging, fine], log)
    try {
      const text = await scrape(port)
      expect(text).toContain('fine 1\n')
      expect(text).toContain('process_cpu_seconds_total')
      expect(text).toContain('chowder_leases_lost_total')
    } finally {
      await close()
    }
  })

  test('are alone on their port, and the error of a taken port has a remedy', async () => {
    expect((await fetch(`http://127.0.0.1:${served.port}/healthz`)).status).toBe(200)
    expect((await fetch(`http://127.0.0.1:${served.port}/v1/organization`)).status).toBe(404)
    expect((await fetch(`http://127.0.0.1:${served.port}/metrics`, { method: 'POST' })).status).toBe(404)
    await expect(serveMetrics({ ...anywhere, port: served.port }, [], log)).rejects.toThrow(
      /^Port \d+ on 127\.0\.0\.1 is taken by another program\. Set METRICS_PORT to a free one/,
    )
  })
})
