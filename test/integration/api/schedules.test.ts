import { afterAll, describe, expect, test } from 'vitest'
import { nextTimes, type Timing } from '#schedules/times.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { startFakeGateway } from '../../support/fake-gateway.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const gateway = await startFakeGateway({})
const chowder = await openTestChowder({ sandboxes: new FakeDriver(() => gateway.endpoint) })
const { pool } = chowder.database
const { id: organizationId, key } = await chowder.signUp()
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})

const as = (method: 'GET' | 'POST' | 'PATCH' | 'DELETE', path: string, body?: unknown, by = key) =>
  chowder.call(method, path, { key: by, ...(body !== undefined && { body }) })
const yearly = { cron: '0 0 1 1 *', input: 'hello' }

/** A schedule of a new instance, with its path. Without a gateway its turns stay as they begin. */
async function create(body: object = {}) {
  const instance = await chowder.createReady(key, gateway.endpoint)
  const path = `/v1/instances/${instance}/schedules`
  const created = await as('POST', path, { ...yearly, ...body })
  expect(created.status).toBe(201)
  const at = `${path}/${created.body.id}`
  return {
    id: created.body.id as string,
    instance,
    at,
    created: created.body,
    read: async () => (await as('GET', at)).body,
    /** Makes it due, so many seconds ago. */
    makeDue: (seconds = 0) =>
      pool.query('UPDATE schedules SET next_at = now() - make_interval(secs => $2) WHERE id = $1', [
        created.body.id,
        seconds,
      ]),
    hasRuns: (count: number) =>
      until(`${count} runs`, async () => {
        const { body } = await as('GET', at)
        return body.runs.length >= count && body
      }),
    setLast: async (status: string) => {
      await pool.query(
        `UPDATE responses SET status = $2, sealed_request = CASE WHEN $2 = 'in_progress' THEN sealed_request END
         WHERE id = (SELECT last_response_id FROM schedules WHERE id = $1)`,
        [created.body.id, status],
      )
    },
  }
}

/** Has the turns of an instance go on, once they have ended: a living process has them. */
async function holdTurns(instance: string): Promise<void> {
  await until('its turns to end', async () => {
    const open = `SELECT FROM responses WHERE instance_id = $1 AND status IN ('queued', 'in_progress')`
    return (await pool.query(open, [instance])).rowCount === 0
  })
  await pool.query(
    `UPDATE responses SET status = 'in_progress', process_id = (SELECT id FROM processes LIMIT 1) WHERE instance_id = $1`,
    [instance],
  )
}

describe('times', () => {
  const timing: Timing = { id: 'a', cron: '30 2 * * *', timeZone: 'Europe/Berlin', at: null, jitterSeconds: 0 }
  const times = (change: Partial<Timing>, from: string, count = 3) =>
    nextTimes({ ...timing, ...change }, new Date(from), count).map((time) => time.toISOString().slice(0, 16))

  test('a fixed time on the days when the clocks change', () => {
    expect(times({}, '2027-03-27T12:00Z')).toEqual(['2027-03-28T01:00', '2027-03-29T00:30', '2027-03-30T00:30'])
    expect(times({}, '2027-10-30T12:00Z')).toEqual(['2027-10-31T00:30', '2027-11-01T01:30', '2027-11-02T01:30'])
  })

  test('other times follow the hours that pass', () => {
    const hourly = { cron: '0 * * * *' }
    expect(times(hourly, '2027-10-30T23:30Z')).toEqual(['2027-10-31T00:00', '2027-10-31T01:00', '2027-10-31T02:00'])
    expect(times(hourly, '2027-03-28T00:30Z')).toEqual(['2027-03-28T01:00', '2027-03-28T02:00', '2027-03-28T03:00'])
  })

  test('a jitter shifts all times of a schedule equally, and no time is left out', () => {
    const daily = { cron: '0 7 * * *', timeZone: 'UTC', jitterSeconds: 3600 }
    const [first = '', second = ''] = times(daily, '2027-01-01T00:00Z', 2)
    expect(Date.parse(`${second}Z`) - Date.parse(`${first}Z`)).toBe(24 * 3_600_000)
    expect(first > '2027-01-01T07:00' && first <= '2027-01-01T08:00').toBe(true)
    expect(times(daily, '2027-01-01T07:00:00Z', 1)).toEqual([first])
  })
})

describe('a run', () => {
  test('begins once at its time, as a background turn in the session of the schedule', async () => {
    const { id, instance, makeDue, hasRuns, created } = await create({ name: 'news' })
    expect(created.session_id).toBe(`schedule-${id}`)
    expect(created.next_times).toHaveLength(5)
    await makeDue()
    const { runs, next_times: next } = await hasRuns(1)
    expect(runs[0]).toMatchObject({ outcome: 'started', reason: null })
    expect(next).toEqual(created.next_times)
    const { body } = await as('GET', `/v1/instances/${instance}/responses/${runs[0].response_id}`)
    expect(body).toMatchObject({ id: runs[0].response_id, background: true })
    const { body: history } = await as('GET', `/v1/instances/${instance}/events?type=schedule.started`)
    expect(history).toMatchObject([
      { subject: id, actor: { type: 'worker' }, reason: `It began ${runs[0].response_id}.` },
    ])
  })

  test('by hand begins within a second, also of a paused schedule, and leaves its times', async () => {
    const { at, hasRuns } = await create({ paused: true })
    expect((await as('POST', `${at}/run`)).status).toBe(200)
    const after = await hasRuns(1)
    expect(after).toMatchObject({ paused: true, next_times: [], runs: [{ outcome: 'started' }] })
    const { body } = await as('PATCH', at, { paused: false })
    expect(body.next_times).toHaveLength(5)
  })

  test('once: at its time, and never again', async () => {
    const { makeDue, hasRuns, created } = await create({ cron: undefined, at: '2090-01-01T00:00:00Z' })
    expect(created).toMatchObject({ cron: null, next_times: ['2090-01-01T00:00:00.000000+00:00'] })
    await pool.query(`UPDATE schedules SET at = now() - interval '1 second' WHERE id = $1`, [created.id])
    await makeDue(1)
    expect(await hasRuns(1)).toMatchObject({ next_times: [], runs: [{ outcome: 'started' }] })
  })

  test('late: begins within catch_up_seconds, one for all that were missed, and is skipped beyond', async () => {
    const [soon, late] = [await create({ cron: '* * * * *' }), await create({ catch_up_seconds: 600 })]
    await soon.makeDue(1800)
    await late.makeDue(601)
    expect((await soon.hasRuns(1)).runs).toMatchObject([{ outcome: 'started' }])
    const { runs, next_times: next } = await late.hasRuns(1)
    expect(runs).toMatchObject([{ outcome: 'skipped', response_id: null, reason: expect.stringContaining('600') }])
    expect(next).toHaveLength(5)
  })

  test('of 50 schedules that are due at once begins once each, by several processes', async () => {
    const other = await openTestChowder({
      sandboxes: new FakeDriver(() => gateway.endpoint),
      database: chowder.database,
      vault: chowder.deps.vault,
    })
    const instance = await chowder.createReady(key, gateway.endpoint)
    const path = `/v1/instances/${instance}/schedules`
    for (let number = 0; number < 50; number += 1) await as('POST', path, yearly)
    await pool.query('UPDATE schedules SET next_at = now() WHERE instance_id = $1', [instance])
    const ran = await until('50 runs', async () => {
      const { body } = await as('GET', path)
      return body.every(({ runs }: { runs: unknown[] }) => runs.length > 0) && body
    })
    await other.close()
    expect(ran.flatMap(({ runs }: { runs: { outcome: string }[] }) => runs.map(({ outcome }) => outcome))).toEqual(
      Array(50).fill('started'),
    )
    const { rows } = await pool.query('SELECT count(*)::int AS n FROM responses WHERE instance_id = $1', [instance])
    expect(rows[0].n).toBe(50)
  })

  test('of a suspended organization waits, and one of a deleted instance goes', async () => {
    const [held, gone] = [await create(), await create()]
    await pool.query('UPDATE organizations SET suspended_at = now() WHERE id = $1', [organizationId])
    await held.makeDue()
    await new Promise((resolve) => setTimeout(resolve, 2500))
    const { rows } = await pool.query('SELECT runs FROM schedules WHERE id = $1', [held.id])
    await pool.query('UPDATE organizations SET suspended_at = NULL WHERE id = $1', [organizationId])
    expect(rows[0].runs).toEqual([])
    await held.hasRuns(1)
    await as('DELETE', `/v1/instances/${gone.instance}`)
    await gone.makeDue()
    await until('its end', async () => (await as('GET', gone.at)).status === 404)
  })
})

describe('overlap', () => {
  test('skip leaves a run out while the one before goes on', async () => {
    const { instance, makeDue, hasRuns } = await create()
    await makeDue()
    await hasRuns(1)
    await holdTurns(instance)
    await makeDue()
    expect((await hasRuns(2)).runs).toMatchObject([
      { outcome: 'skipped', reason: 'The run before it went on.' },
      { outcome: 'started' },
    ])
  })

  test('buffer_one begins one run after the one before, however many were due', async () => {
    const { instance, makeDue, hasRuns, setLast, id } = await create({ overlap: 'buffer_one' })
    await makeDue()
    await hasRuns(1)
    await holdTurns(instance)
    await makeDue(30)
    await until('it to wait', async () => {
      const { rows } = await pool.query('SELECT waiting_since FROM schedules WHERE id = $1', [id])
      return rows[0].waiting_since !== null
    })
    await setLast('completed')
    const { runs } = await hasRuns(2)
    expect(runs).toMatchObject([{ outcome: 'started' }, { outcome: 'started' }])
    expect(Date.parse(runs[0].at) - Date.parse(runs[0].due_at)).toBeGreaterThanOrEqual(30_000)
  })

  test('cancel_other cancels the run before', async () => {
    const { instance, makeDue, hasRuns } = await create({ overlap: 'cancel_other' })
    await makeDue()
    const { runs: first } = await hasRuns(1)
    await holdTurns(instance)
    await makeDue()
    await hasRuns(2)
    const { rows } = await pool.query('SELECT status FROM responses WHERE id = $1', [
      first[0].response_id.replace('resp_', ''),
    ])
    expect(rows[0].status).toBe('cancelled')
  })
})

describe('failures', () => {
  test('pause a schedule after so many in a row, and a resume begins anew', async () => {
    const { at, id, makeDue, hasRuns, setLast, read } = await create({ pause_on_failures: 2 })
    for (const count of [1, 2]) {
      await makeDue()
      await hasRuns(count)
      await setLast('failed')
    }
    await makeDue()
    const { runs } = await hasRuns(3)
    expect(runs[0]).toMatchObject({ outcome: 'skipped', reason: '2 runs in a row have failed.' })
    expect(await read()).toMatchObject({ paused: true, paused_for: 'failures', failures: 2, next_times: [] })
    const { body: history } = await as('GET', '/v1/organization/events?type=schedule.paused')
    expect(history[0].subject).toBe(id)
    expect((await as('PATCH', at, { paused: false })).body).toMatchObject({ paused_for: null, failures: 0 })
  })

  test('an agent that is stopped: the run fails, and the next one has its time', async () => {
    const { instance, makeDue, hasRuns, created } = await create()
    await pool.query(
      "UPDATE instances SET desired_state = 'stopped', generation = 2, observed_generation = 2 WHERE id = $1",
      [instance],
    )
    await makeDue()
    const after = await hasRuns(1)
    expect(after).toMatchObject({ failures: 1, next_times: created.next_times, paused: false })
    expect(after.runs[0]).toMatchObject({
      outcome: 'failed',
      response_id: null,
      reason: expect.stringMatching(/stopped/),
    })
  })
})

describe('the API', () => {
  test('refuses what is no schedule, and names the field', async () => {
    const instance = await chowder.createReady(key, gateway.endpoint)
    const path = `/v1/instances/${instance}/schedules`
    for (const [body, param] of [
      [{ input: 'x' }, 'cron'],
      [{ input: 'x', cron: '0 0 30 2 *' }, 'cron'],
      [{ input: 'x', cron: '61 * * * *' }, 'cron'],
      [{ input: 'x', cron: '0 7 * * *', time_zone: 'Moon/Crater' }, 'time_zone'],
      [{ input: 'x', cron: '0 7 * * *', at: '2090-01-01T00:00:00Z' }, 'at'],
      [{ input: 'x', at: '2020-01-01T00:00:00Z' }, 'at'],
    ] as const) {
      const { status, body: answer } = await as('POST', path, body)
      expect([status, answer.error.param], JSON.stringify(body)).toEqual([400, param])
    }
    expect((await as('POST', path, { input: 'x', cron: '* * * * * *' })).status).toBe(422)
    expect((await as('GET', path)).body).toEqual([])
  })

  test('a change of the times begins with the next one, and 100 are the most', async () => {
    const { at, instance } = await create()
    const { body } = await as('PATCH', at, { cron: '0 7 * * *', time_zone: 'Asia/Tokyo', input: 'good morning' })
    expect(body).toMatchObject({ cron: '0 7 * * *', time_zone: 'Asia/Tokyo', input: 'good morning' })
    expect(body.next_times[0]).toMatch(/T22:00:00/)
    const path = `/v1/instances/${instance}/schedules`
    await pool.query(
      `INSERT INTO schedules (id, organization_id, instance_id, name, cron, time_zone, sealed_input, session_key, model,
         overlap, catch_up_seconds, jitter_seconds)
       SELECT gen_random_uuid(), organization_id, instance_id, name, cron, time_zone, sealed_input, session_key, model,
         overlap, catch_up_seconds, jitter_seconds FROM schedules, generate_series(1, 99) WHERE instance_id = $1`,
      [instance],
    )
    const { status, body: refused } = await as('POST', path, yearly)
    expect([status, refused.error.code]).toEqual([409, 'too_many_resources'])
    expect((await as('DELETE', at)).status).toBe(204)
    expect((await as('POST', path, yearly)).status).toBe(201)
  })
})
