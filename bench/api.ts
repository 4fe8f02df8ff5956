import type pg from 'pg'
import { newId } from '#platform/ids.ts'
import { startChowder } from '../demo/chowder-process.ts'
import { present } from '../test/support/present.ts'
import type { BareSetup } from './bare-fastify.ts'
import { type Figure, figure, type Round } from './figures.ts'
import type { Measured } from './load.ts'
import type { PassThrough } from './pass-through.ts'
import { measureRelay } from './relay.ts'
import {
  createSetup,
  createsOf,
  json,
  makeOwners,
  newAgent,
  pollsOf,
  type Request,
  turn,
  turnsOf,
  type Undo,
  undoAll,
} from './setup.ts'
import { streamedPieces } from './streamed.ts'
import { openStreamKib, webSocketTurns } from './streams.ts'
import type { WithoutAdapter } from './without-adapter.ts'

const bareOrganizations = 64
/**
 * The limits of the adapter's cost: for a turn compared with a pass-through by the same API, for an event of 200, and
 * for an open stream.
 */
const mostAddedMs = 0.3
const mostAddedToEventUs = 20
const mostOpenStreamKib = 200
const streamedTurn = { method: 'POST', body: JSON.stringify({ model: 'openclaw', input: 'Hello', stream: true }) }

export interface Scale {
  rounds: number
  roundMs: number
  warmUpMs: number
}

/** Organizations for the bare INSERT's foreign key, apart from those whose rows Chowder updates. */
async function makeBareOrganizations(pool: pg.Pool): Promise<string[]> {
  const ids = Array.from({ length: bareOrganizations }, newId)
  await pool.query(
    `INSERT INTO organizations (id, name, subscription_tier) SELECT unnest($1::uuid[]), 'Bare', 'whale'`,
    [ids],
  )
  return ids
}

/** How much more time the median request takes than without anything between. */
const added = (through: Measured, direct: Measured) => Math.max(0.001, through.p50Ms - direct.p50Ms)

const rounds = (sides: { chowder: Measured; limit: Measured }[], of: (measured: Measured) => number): Round[] =>
  sides.map(({ chowder, limit }) => ({ chowder: of(chowder), limit: of(limit) }))

/**
 * Creates, status polls and turns a second through the API, each beside the least that could do the same. Chowder's
 * API, its limit, the load and the stub gateway are processes of their own on one embedded PostgreSQL.
 */
export async function measureApi(
  { rounds: count, roundMs, warmUpMs }: Scale,
  report: (text: string) => void,
): Promise<Figure[]> {
  const undo: Undo = []
  try {
    report('starting PostgreSQL and the API')
    const { pool, connection, chowder, start, load } = await createSetup(undo)
    const api = await startChowder({ ...chowder, role: 'api' })
    undo.push(() => api.stop('SIGTERM'))
    const apiPort = Number(new URL(api.url).port)

    const gatewayPort = await start('./stub-gateway.ts', {})
    const bareSetup: BareSetup = { connection, organizationIds: await makeBareOrganizations(pool) }
    const barePort = await start('./bare-fastify.ts', bareSetup)
    const owners = await makeOwners(pool, api.url, gatewayPort)
    const instanceIds = owners.map(({ instanceId }) => instanceId)
    const passThrough: PassThrough = { target: `http://127.0.0.1:${gatewayPort}`, connection, instanceIds }
    const passThroughPort = await start('./pass-through.ts', passThrough)

    type Side = [port: number, requests: Request[]]
    /** Both sides in turn, the one that is first changing, after a round each that does not count. */
    async function compare(what: string, status: number, chowder: Side, limit: Side, atOnce?: number) {
      report(what)
      const side = ([port, requests]: Side, ms: number) => load([port], requests, status, ms, atOnce)
      const sides: { chowder: Measured; limit: Measured }[] = []
      await side(limit, warmUpMs)
      await side(chowder, warmUpMs)
      while (sides.length < count) {
        if (sides.length % 2 === 0) {
          const first = await side(limit, roundMs)
          sides.push({ limit: first, chowder: await side(chowder, roundMs) })
        } else {
          const first = await side(chowder, roundMs)
          sides.push({ chowder: first, limit: await side(limit, roundMs) })
        }
      }
      return sides
    }

    // A process of its own: memory that other rounds leave behind would be used again, and so would its thousand
    // connections.
    report('1,000 open streams')
    const fresh = await startChowder({ ...chowder, role: 'api' })
    const openStream = await openStreamKib(fresh.pid, Number(new URL(fresh.url).port), owners).finally(() =>
      fresh.stop('SIGTERM'),
    )

    const creates = await compare(
      'creates',
      201,
      [apiPort, createsOf(owners)],
      [barePort, [{ ...newAgent, path: '/instances', headers: json }]],
    )
    const polls = await compare(
      'status polls',
      200,
      [apiPort, pollsOf(owners)],
      [
        barePort,
        owners.map(({ instanceId }) => ({ method: 'GET', path: `/instances/${instanceId}/status`, headers: {} })),
      ],
    )
    const passed: Request[] = owners.map(({ auth }) => ({
      ...turn,
      path: '/v1/responses',
      headers: { ...json, ...auth },
    }))
    const turns = await compare('turns through the proxy', 200, [apiPort, turnsOf(owners)], [passThroughPort, passed])
    const direct = await load([gatewayPort], passed, 200, roundMs)
    // It reports itself in a table of its own: an API that sees no other one puts its turns in line without a statement.
    await pool.query('CREATE SCHEMA apart; CREATE TABLE apart.processes (LIKE processes INCLUDING ALL)')
    const withoutAdapter: WithoutAdapter = {
      connection: { ...connection, options: '-c search_path=apart,public' },
      secretKey: chowder.env.CHOWDER_SECRET_KEY,
    }
    const withoutPort = await start('./without-adapter.ts', withoutAdapter)
    // One at a time: what a single caller waits for.
    const unadapted = (one: typeof turn) =>
      turnsOf(owners, one).map((asked, at) => ({
        ...asked,
        path: `/passed/${present(owners[at % owners.length]).instanceId}`,
      }))
    const besideAdapter = (what: string, one: typeof turn, atOnce?: number) =>
      compare(what, 200, [apiPort, turnsOf(owners, one)], [withoutPort, unadapted(one)], atOnce)
    const turnsAlone = await besideAdapter('single turns', turn, 1)
    const streamsAlone = await besideAdapter('single streams', streamedTurn, 1)
    const turnsBeside = await besideAdapter('turns through the adapter', turn)
    const streams = await besideAdapter('streams through the adapter', streamedTurn)
    report('turns over WebSockets')
    const overWebSockets: Round[] = []
    for (let round = 0; round < count; round += 1) {
      const posted = await load([apiPort], turnsOf(owners, streamedTurn), 200, roundMs)
      overWebSockets.push({ chowder: await webSocketTurns(apiPort, owners, roundMs), limit: posted.perSecond })
    }
    const second = await startChowder({ ...chowder, role: 'api' })
    undo.push(() => second.stop('SIGTERM'))
    const turnsOfTwo = await besideAdapter('turns while another API runs', turn)

    report('the relay')
    const ofRelay = await measureRelay({
      ...{ pool, chowder, load, start, owners, rounds: count, roundMs },
      apiUrl: api.url,
      vendorPort: gatewayPort,
    })

    return [
      figure(
        'create accepted',
        '/s',
        { atLeast: 0.5 },
        rounds(creates, ({ perSecond }) => perSecond),
      ),
      figure(
        'create p99',
        'ms',
        { atMost: 2 },
        rounds(creates, ({ p99Ms }) => p99Ms),
      ),
      figure(
        'status polls',
        '/s',
        { atLeast: 0.7 },
        rounds(polls, ({ perSecond }) => perSecond),
      ),
      figure(
        'proxied turns',
        '/s',
        { atLeast: 0.7 },
        rounds(turns, ({ perSecond }) => perSecond),
      ),
      figure(
        'proxy added p50',
        'ms',
        { atMost: 1.5 },
        rounds(turns, (measured) => added(measured, direct)),
      ),
      figure(
        'adapter added p50',
        'ms',
        { atMost: 1 },
        turnsAlone.map(({ chowder, limit }) => ({ chowder: added(chowder, limit), limit: mostAddedMs })),
      ),
      figure(
        'adapter p99',
        'ms',
        { atMost: 3 },
        rounds(turnsAlone, ({ p99Ms }) => p99Ms),
      ),
      figure(
        'adapter added an event',
        'µs',
        { atMost: 1 },
        streamsAlone.map(({ chowder, limit }) => ({
          chowder: (added(chowder, limit) / streamedPieces) * 1000,
          limit: mostAddedToEventUs,
        })),
      ),
      figure(
        'adapter turns',
        '/s',
        { atLeast: 0.4 },
        rounds(turnsBeside, ({ perSecond }) => perSecond),
      ),
      figure(
        'adapter streams',
        '/s',
        { atLeast: 0.4 },
        rounds(streams, ({ perSecond }) => perSecond),
      ),
      figure(
        'turns of two APIs',
        '/s',
        { atLeast: 0.2 },
        rounds(turnsOfTwo, ({ perSecond }) => perSecond),
      ),
      figure('WebSocket turns', '/s', { atLeast: 0.7 }, overWebSockets),
      figure('an open stream', 'KiB', { atMost: 1 }, [{ chowder: openStream, limit: mostOpenStreamKib }]),
      ...ofRelay,
    ]
  } finally {
    await undoAll(undo)
  }
}
