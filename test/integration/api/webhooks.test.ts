import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import OpenAI from 'openai'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { queueEvents } from '#api/webhooks/queue.ts'
import { parseHostRule } from '#egress/hosts.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { startFakeGateway } from '../../support/fake-gateway.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const addresses = new Map([['receiver.example', ['127.0.0.2']]])
const resolved: string[] = []
const gateway = await startFakeGateway({})
const operatorHosts = [parseHostRule('127.0.0.1:*', { ranges: true })].flatMap((rule) => rule ?? [])
const chowder = await openTestChowder({
  sandboxes: new FakeDriver(() => gateway.endpoint),
  receivers: {
    operatorHosts,
    async resolve(name) {
      resolved.push(name)
      return addresses.get(name) ?? Promise.reject(Object.assign(new Error(), { code: 'ENOTFOUND' }))
    },
  },
})
const { db, pool } = chowder.database
beforeAll(() => chowder.startWorker())
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})

interface Received {
  headers: Record<string, string>
  body: string
  event: { type: string; timestamp: string; data: Record<string, unknown> & { id: number; type: string } }
}
type Respond = (received: Received, reply: ServerResponse, request: IncomingMessage) => void
const ok: Respond = (_received, reply) => reply.writeHead(204).end()

/** A receiver, which answers with 204 unless it is given another way. */
async function startReceiver(respond: Respond = ok) {
  const received: Received[] = []
  const server = createServer(async (request, reply) => {
    let body = ''
    for await (const chunk of request) body += chunk
    const one = { headers: request.headers as Record<string, string>, body, event: JSON.parse(body) }
    received.push(one)
    receiver.respond(one, reply, request)
  })
  server.listen(0)
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const receiver = {
    respond,
    received,
    port,
    url: `http://127.0.0.1:${port}/hook?a=1`,
    types: () => received.map(({ event }) => event.type),
  }
  onTestFinished(() => {
    server.closeAllConnections()
    server.close()
  })
  return receiver
}

/** An organization with calls by its key. */
async function newOrganization() {
  const { id, key } = await chowder.signUp()
  const as = (method: 'GET' | 'POST' | 'PATCH' | 'DELETE', path: string, body?: unknown) =>
    chowder.call(method, path, { key, ...(body !== undefined && { body }) })
  const create = async (url: string, types: string[] | null = null) => {
    const { status, body } = await as('POST', '/v1/webhooks', { url, types })
    expect(status).toBe(201)
    return body as { id: string; secret: string }
  }
  const deliveries = async (webhookId: string) => (await as('GET', `/v1/webhooks/${webhookId}/deliveries`)).body
  return { id, key, as, create, deliveries }
}

/** Inserts events of a line, oldest first. */
const insertEvents = (organizationId: string, instanceId: string | null, types: readonly string[]) =>
  pool.query(
    `INSERT INTO events (organization_id, instance_id, type, actor_type)
     SELECT $1, $2, type, 'worker' FROM unnest($3::text[]) WITH ORDINALITY AS t (type, number) ORDER BY number`,
    [organizationId, instanceId, types],
  )
const makeDue = (webhookId: string) =>
  pool.query(
    `UPDATE webhook_deliveries SET next_attempt_at = now() WHERE webhook_id = $1 AND next_attempt_at IS NOT NULL`,
    [webhookId],
  )
const line = (last: number) => `00000000-0000-7000-8000-${String(last).padStart(12, '0')}`

describe('messages', () => {
  test('the openai client verifies them, and they are the events of the history', async () => {
    const receiver = await startReceiver()
    const { as, create } = await newOrganization()
    const { id, secret } = await create(receiver.url)
    await until('the messages arrive', () => receiver.received.length === 1)
    const [first] = receiver.received as [Received]
    const client = new OpenAI({ apiKey: 'none', webhookSecret: secret })
    const event = (await client.webhooks.unwrap(first.body, first.headers)) as unknown as Received['event']
    const { body: history } = await as('GET', '/v1/organization/events?type=webhook.create')
    expect(event).toEqual({ type: 'webhook.create', timestamp: history[0].created_at, data: history[0] })
    expect(event.data).toMatchObject({ subject: id })
    expect(first.headers['webhook-id']).toBe(String(event.data.id))
    await expect(client.webhooks.unwrap(`${first.body} `, first.headers)).rejects.toThrow(/signature/i)
  })

  test('types choose, and those of a noun too', async () => {
    const [some, noun] = [await startReceiver(), await startReceiver()]
    const { id, create } = await newOrganization()
    await create(some.url, ['instance.failed'])
    await create(noun.url, ['budget.*'])
    await insertEvents(id, line(1), ['instance.failed', 'budget.reached', 'instance.running', 'budget.changed'])
    await until('the messages arrive', () => some.received.length === 1 && noun.received.length === 2)
    expect([some.types(), noun.types()]).toEqual([['instance.failed'], ['budget.reached', 'budget.changed']])
  })

  test('both secrets sign after a rotation, and only the new one when the time is over', async () => {
    const receiver = await startReceiver()
    const { id, as, create } = await newOrganization()
    const webhook = await create(receiver.url, ['budget.reached'])
    const { body } = await as('POST', `/v1/webhooks/${webhook.id}/rotate_secret`, {})
    expect(body.secret).not.toBe(webhook.secret)
    const verifies = ({ body: text, headers }: Received, secret: string) =>
      new OpenAI({ apiKey: 'none' }).webhooks.unwrap(text, headers, secret).then(
        () => true,
        () => false,
      )
    await insertEvents(id, null, ['budget.reached'])
    await until('the messages arrive', () => receiver.received.length === 1)
    await as('POST', `/v1/webhooks/${webhook.id}/rotate_secret`, { keep_previous_seconds: 0 })
    await insertEvents(id, null, ['budget.reached'])
    await until('the messages arrive', () => receiver.received.length === 2)
    const [first, second] = receiver.received as [Received, Received]
    expect([await verifies(first, webhook.secret), await verifies(first, body.secret)]).toEqual([true, true])
    expect(await verifies(second, body.secret)).toBe(false)
  })
})

describe('deliveries', () => {
  test('come in order within an instance, and one that fails holds up its instance alone', async () => {
    let isBroken = true
    const receiver = await startReceiver(({ event }, reply) =>
      reply.writeHead(isBroken && event.data.instance_id === line(1) ? 500 : 200).end(),
    )
    const { id, create, deliveries } = await newOrganization()
    const webhook = await create(receiver.url, ['instance.*'])
    await insertEvents(id, line(1), ['instance.due', 'instance.running', 'instance.stopped'])
    await insertEvents(id, line(2), ['instance.due', 'instance.running'])
    const of = (number: number) =>
      receiver.received.filter(({ event }) => event.data.instance_id === line(number)).map(({ event }) => event.type)
    await until('the messages arrive', () => of(2).length === 2 && of(1).length > 0)
    expect(new Set(of(1))).toEqual(new Set(['instance.due']))
    isBroken = false
    await makeDue(webhook.id)
    await until('the deliveries end', async () =>
      (await deliveries(webhook.id)).every((one: { status: string }) => one.status === 'delivered'),
    )
    expect(of(1).slice(-3)).toEqual(['instance.due', 'instance.running', 'instance.stopped'])
    const oldest = (await deliveries(webhook.id)).at(-1)
    expect(oldest.tries[0]).toMatchObject({ status: 500, error: 'The receiver answered 500.' })
    expect(oldest.tries.at(-1)).toMatchObject({ status: 200, error: null })
  })

  test('a receiver that comes back gets at once what waits for it', async () => {
    let isDown = true
    const receiver = await startReceiver((_received, reply) => reply.writeHead(isDown ? 503 : 200).end())
    const { id, as, create, deliveries } = await newOrganization()
    const webhook = await create(receiver.url, ['instance.due'])
    for (const number of [1, 2, 3]) await insertEvents(id, line(number), ['instance.due'])
    const later = `UPDATE webhook_deliveries SET next_attempt_at = now() + interval '2 hours' WHERE webhook_id = $1`
    const isTried = ({ tries }: { tries: unknown[] }) => tries.length === 1
    await until('three tries', async () => (await deliveries(webhook.id)).filter(isTried).length === 3)
    await pool.query(later, [webhook.id])
    const { body: failing } = await as('GET', `/v1/webhooks/${webhook.id}`)
    expect(failing.failing_since).not.toBeNull()
    isDown = false
    await insertEvents(id, line(4), ['instance.due'])
    await until('the messages arrive', () => receiver.received.length === 7)
    await until(
      'the deliveries end',
      async () => (await as('GET', `/v1/webhooks/${webhook.id}`)).body.failing_since === null,
    )
  })

  test('ten tries, then the next event of the instance has its turn', async () => {
    const receiver = await startReceiver(({ event }, reply) =>
      reply.writeHead(event.type === 'instance.due' ? 500 : 200).end(),
    )
    const { id, create, deliveries } = await newOrganization()
    const webhook = await create(receiver.url, ['instance.*'])
    await insertEvents(id, line(1), ['instance.due', 'instance.running'])
    await until('the deliveries end', async () => {
      await makeDue(webhook.id)
      return receiver.types().includes('instance.running')
    })
    expect(receiver.types()).toEqual([...Array(10).fill('instance.due'), 'instance.running'])
    await until('the deliveries end', async () => (await deliveries(webhook.id))[0].status === 'delivered')
    const [, failed] = await deliveries(webhook.id)
    expect(failed).toMatchObject({ status: 'failed', next_attempt_at: null })
    expect(failed.tries).toHaveLength(10)
  })

  test('410 disables; enabled again it gets what comes then; one that failed is sent again', async () => {
    let status = 410
    const receiver = await startReceiver((_received, reply) => reply.writeHead(status).end())
    const { id, as, create, deliveries } = await newOrganization()
    const webhook = await create(receiver.url, ['instance.*'])
    const path = `/v1/webhooks/${webhook.id}`
    await insertEvents(id, line(1), ['instance.due', 'instance.running'])
    await until('the deliveries end', async () => (await as('GET', path)).body.disabled_for === 'gone')
    const [second, first] = await deliveries(webhook.id)
    expect([second.status, first.status]).toEqual(['failed', 'failed'])
    const { body: history } = await as('GET', '/v1/organization/events?type=webhook.disabled')
    expect(history[0]).toMatchObject({ subject: webhook.id, reason: 'The receiver answered 410.' })
    await insertEvents(id, line(1), ['instance.stopped'])
    await queueEvents(db)
    status = 200
    const { body: sent } = await as('POST', `${path}/deliveries/${first.event_id}/resend`)
    expect(sent.status).toBe('pending')
    await until('the deliveries end', async () => (await deliveries(webhook.id))[1].status === 'delivered')
    expect((await as('PATCH', path, { enabled: true })).body).toMatchObject({ enabled: true, disabled_for: null })
    await insertEvents(id, line(1), ['instance.failed'])
    await until('the messages arrive', () => receiver.types().includes('instance.failed'))
    expect(receiver.types()).toEqual(['instance.due', 'instance.due', 'instance.failed'])
  })

  test('three days of failures disable', async () => {
    const receiver = await startReceiver((_received, reply) => reply.writeHead(500).end())
    const { id, as, create } = await newOrganization()
    const webhook = await create(receiver.url, ['instance.due'])
    await insertEvents(id, line(1), ['instance.due'])
    await until(
      'the deliveries end',
      async () => (await as('GET', `/v1/webhooks/${webhook.id}`)).body.failing_since !== null,
    )
    await pool.query(`UPDATE webhooks SET failing_since = now() - interval '73 hours' WHERE id = $1`, [webhook.id])
    await makeDue(webhook.id)
    await until(
      'the deliveries end',
      async () => (await as('GET', `/v1/webhooks/${webhook.id}`)).body.disabled_for === 'failing',
    )
  })

  test('a killed process: its try is repeated when the lease ends', async () => {
    const receiver = await startReceiver()
    const { id, create, deliveries } = await newOrganization()
    const webhook = await create('http://127.0.0.1:1/', ['instance.due'])
    await insertEvents(id, line(1), ['instance.due'])
    await until('the deliveries end', async () => (await deliveries(webhook.id))[0]?.tries.length === 1)
    // As a process leaves it that is killed between its claim and its end.
    await pool.query(
      `UPDATE webhook_deliveries SET attempts = attempts + 1, next_attempt_at = now() + interval '1 second'
       WHERE webhook_id = $1`,
      [webhook.id],
    )
    await pool.query('UPDATE webhooks SET url = $2 WHERE id = $1', [webhook.id, receiver.url])
    await until('the deliveries end', async () => (await deliveries(webhook.id))[0].status === 'delivered')
  })

  test('events are queued once, by however many at once, and none is left out', async () => {
    const receiver = await startReceiver()
    const { id, create } = await newOrganization()
    await create(receiver.url, ['instance.due'])
    const many = Array.from({ length: 20 }, (_, at) => at)
    await Promise.all(
      many.map(async (at) => {
        await insertEvents(id, line(at % 3), ['instance.due', 'instance.due'])
        await Promise.all([queueEvents(db), queueEvents(db)])
      }),
    )
    await until('the messages arrive', () => receiver.received.length >= 40)
    const ids = receiver.received.map(({ event }) => event.data.id)
    expect(new Set(ids).size).toBe(40)
    for (const number of [0, 1, 2]) {
      const own = receiver.received.filter(({ event }) => event.data.instance_id === line(number))
      const order = own.map(({ event }) => event.data.id)
      expect(order).toEqual(order.toSorted((a, b) => a - b))
    }
  })
})

describe('receivers', () => {
  test('A5: that hang, send no end, redirect, or are private get nothing more, and hold up nobody', async () => {
    const good = await startReceiver()
    const hanging = await startReceiver(() => {})
    const endless = await startReceiver((_received, reply) => {
      reply.writeHead(200)
      const timer = setInterval(() => reply.write('x'.repeat(1000)), 5)
      reply.on('close', () => clearInterval(timer))
    })
    const redirecting = await startReceiver((_received, reply) => reply.writeHead(307, { location: good.url }).end())
    const { id, create, deliveries } = await newOrganization()
    const bad = [
      await create(hanging.url, ['instance.due']),
      await create(endless.url, ['instance.due']),
      await create(redirecting.url, ['instance.due']),
      await create(`http://receiver.example:${good.port}/`, ['instance.due']),
      await create('http://10.0.0.1/', ['instance.due']),
      await create('http://nowhere.example/', ['instance.due']),
    ] as const
    await create(good.url, ['instance.due'])
    for (let number = 0; number < 50; number += 1) await insertEvents(id, line(number), ['instance.due'])
    await until('the messages arrive', () => good.received.length === 50)
    const faultOf = async ({ id: webhookId }: { id: string }) => (await deliveries(webhookId)).at(-1)?.tries[0]?.error
    await until('the deliveries end', async () => (await faultOf(bad[5])) !== undefined)
    expect(await faultOf(bad[1])).toBe(null)
    expect(await faultOf(bad[2])).toBe('The receiver answered 307. Redirects are not followed.')
    expect(await faultOf(bad[3])).toBe(`receiver.example:${good.port} has an address that is not public.`)
    expect(await faultOf(bad[4])).toBe('10.0.0.1:80 has an address that is not public.')
    expect(await faultOf(bad[5])).toBe('The name of the receiver has no address.')
    expect(hanging.received.length).toBeLessThanOrEqual(8)
    expect(good.received).toHaveLength(50)
  })

  test('A5: a name is resolved again for each connection', async () => {
    const receiver = await startReceiver()
    addresses.set('rebinding.example', ['203.0.113.7'])
    const { id, create, deliveries } = await newOrganization()
    const webhook = await create(`http://rebinding.example:${receiver.port}/`, ['instance.due'])
    addresses.set('rebinding.example', ['127.0.0.2'])
    await insertEvents(id, line(1), ['instance.due'])
    await until('the deliveries end', async () => (await deliveries(webhook.id))[0]?.tries.length === 1)
    expect((await deliveries(webhook.id))[0].tries[0].error).toMatch(/not public/)
    expect(resolved).toContain('rebinding.example')
    expect(receiver.received).toHaveLength(0)
  })
})

describe('the API', () => {
  test('refuses addresses that cannot be receivers, and a webhook too many', async () => {
    const { as } = await newOrganization()
    for (const url of ['ftp://a.example/', 'no address', 'https://user:word@a.example/', 'https:///']) {
      const { status, body } = await as('POST', '/v1/webhooks', { url })
      expect([status, body.error.param]).toEqual([400, 'url'])
    }
    for (let number = 0; number < 20; number += 1) await as('POST', '/v1/webhooks', { url: 'https://a.example/' })
    const { status, body } = await as('POST', '/v1/webhooks', { url: 'https://a.example/' })
    expect([status, body.error.code]).toEqual([409, 'too_many_resources'])
    expect((await as('GET', '/v1/webhooks')).body).toHaveLength(20)
  })

  test('a webhook is of its organization alone, and goes with its deliveries', async () => {
    const receiver = await startReceiver()
    const [own, other] = [await newOrganization(), await newOrganization()]
    const webhook = await own.create(receiver.url)
    await until('the deliveries end', async () => (await own.deliveries(webhook.id))[0]?.status === 'delivered')
    const path = `/v1/webhooks/${webhook.id}`
    for (const [method, at] of [
      ['GET', path],
      ['DELETE', path],
      ['GET', `${path}/deliveries`],
    ] as const) {
      expect((await other.as(method, at)).status).toBe(404)
    }
    expect((await own.as('GET', path)).body).not.toHaveProperty('secret')
    expect((await own.as('DELETE', path)).status).toBe(204)
    expect((await own.as('GET', path)).status).toBe(404)
    const { rows } = await pool.query('SELECT FROM webhook_deliveries WHERE webhook_id = $1', [webhook.id])
    expect(rows).toHaveLength(0)
  })
})
