import { createServer, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import type pg from 'pg'
import { startChowder } from '../demo/chowder-process.ts'
import { until } from './agents.ts'
import { type Fact, type Figure, fact, figure, type Round } from './figures.ts'
import { createSetup, type Undo, undoAll } from './setup.ts'
import { connect, type Tenant } from './tenant.ts'

const readers = 1000
const events = 500
const receivers = 8
/** Deliveries of one round to all receivers that answer. */
const deliveries = 2000
const rounds = 3
const timeoutMs = 3 * 60_000

async function addEvents(pool: pg.Pool, organizationId: string, count: number): Promise<void> {
  // Each is of an instance of its own: the events of one come one after the other.
  await pool.query(
    `INSERT INTO events (organization_id, instance_id, type, actor_type)
     SELECT $1, gen_random_uuid(), 'file.write', 'key' FROM generate_series(1, $2)`,
    [organizationId, count],
  )
}

const organizationOf = async (tenant: Tenant) => (await tenant.call<{ id: string }>('GET', '/v1/organization')).id

/** Events a second that many readers of one organization get, all together. */
async function measureReaders(tenant: Tenant, pool: pg.Pool): Promise<Fact[]> {
  const id = await organizationOf(tenant)
  let received = 0
  const last: Promise<number>[] = []
  const opened: Response[] = []
  for (let reader = 0; reader < readers; reader += 1)
    opened.push(await tenant.open('GET', '/v1/events/stream?type=file.*'))
  for (const { body } of opened) {
    const read = async () => {
      let own = 0
      for await (const chunk of (body as ReadableStream<Uint8Array>).pipeThrough(new TextDecoderStream())) {
        own += chunk.split('\ndata: ').length - 1
        if (own >= events) break
      }
      received += own
      return performance.now()
    }
    last.push(read())
  }
  const startedAt = performance.now()
  await addEvents(pool, id, events)
  const endedAt = Math.max(...(await Promise.all(last)))
  return [
    fact(`events to ${readers} readers, all together`, (received / (endedAt - startedAt)) * 1000, '/s'),
    fact(`  the last of ${events} events at the last reader`, endedAt - startedAt, 'ms'),
  ]
}

/** Deliveries a second to receivers that answer, beside one that hangs and without it, in turn. */
async function measureDeliveries(url: string, pool: pg.Pool, undo: Undo): Promise<Figure> {
  let received = 0
  const hanging = new Set<ServerResponse>()
  const server = createServer((request, response) => {
    request.resume().once('end', () => {
      if (request.url === '/hangs') return void hanging.add(response)
      received += 1
      response.end()
    })
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  undo.push(async () => {
    server.closeAllConnections()
    server.close()
  })
  const { port } = server.address() as AddressInfo
  const subscribe = async (path: string) => {
    const tenant = await connect(url)
    await tenant.call('POST', '/v1/webhooks', { url: `http://localhost:${port}${path}`, types: ['file.*'] })
    return organizationOf(tenant)
  }
  const answering = await Promise.all(Array.from({ length: receivers }, () => subscribe('/answers')))
  const other = await subscribe('/hangs')
  const round = async (withHanging: boolean) => {
    if (withHanging) await addEvents(pool, other, deliveries)
    received = 0
    const startedAt = performance.now()
    await Promise.all(answering.map((id) => addEvents(pool, id, deliveries / receivers)))
    await until('the deliveries', timeoutMs, async () => received >= deliveries)
    const perSecond = deliveries / ((performance.now() - startedAt) / 1000)
    for (const response of hanging) response.destroy()
    hanging.clear()
    await pool.query(`DELETE FROM webhook_deliveries WHERE status = 'pending'`)
    return perSecond
  }
  await round(false) // does not count
  const measured: Round[] = []
  for (let count = 0; count < rounds; count += 1)
    measured.push({ limit: await round(false), chowder: await round(true) })
  return figure('webhook deliveries beside a receiver that hangs', '/s', { atLeast: 0.9 }, measured)
}

/** Events that readers follow, and webhooks. */
export async function measurePush(report: (text: string) => void): Promise<(Fact | Figure)[]> {
  const undo: Undo = []
  try {
    const { pool, chowder } = await createSetup(undo, { EGRESS_ALLOWED_HOSTS: 'localhost' })
    const all = await startChowder({ ...chowder, role: 'all' })
    undo.push(() => all.stop('SIGTERM'))
    report(`${readers} readers of events`)
    const facts = await measureReaders(await connect(all.url), pool)
    report('webhooks')
    return [...facts, await measureDeliveries(all.url, pool, undo)]
  } finally {
    await undoAll(undo)
  }
}
