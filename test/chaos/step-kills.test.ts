import { randomBytes } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest'
import { prepareCluster } from '#database/embedded-cluster.ts'
import { findPostmaster, StillInUse, startPostmaster } from '#database/embedded-postmaster.ts'
import { migrate } from '#database/migrate.ts'
import { migrateQueue } from '#lifecycle/queue/queue.ts'
import { agentEnv } from '../support/agent-sandboxes.ts'
import { type Answer, type Api, api, say, sessionPath, signUp, waitForStatus } from '../support/api-client.ts'
import {
  askGateway,
  type ChowderProcess,
  findGateway,
  makeDataDir,
  removeDataDir,
  startChowder,
} from '../support/chowder-process.ts'
import { type FakeModelProvider, startFakeModelProvider } from '../support/fake-model-provider.mjs'
import { present } from '../support/present.ts'
import { type SandboxesSeen, sandboxesSeen, type World } from '../support/sandboxes-seen.ts'
import { type Hold, openProxy, type TcpProxy } from '../support/tcp-proxy.ts'
import { cloneDatabase, type TestDatabase } from '../support/test-database.ts'
import { until } from '../support/until.ts'
import { databaseUrl } from './api-replicas.ts'
import { findIllegalTransitions } from './checker.ts'

/** From the kill until another worker has taken the row. */
const resumesWithinMs = 45_000
/** And until it is settled where no gateway has to start. */
const settlesWithinMs = 90_000
/** OpenClaw needs seconds of a processor to start, and several start at once, beside what other tests do. */
const startsWithinMs = 120_000
const firstKey = 'sk-ant-first'
const secondKey = 'sk-ant-second'

/**
 * Where the worker is killed. `unrecorded`: what comes before `step` is done, and the statement that records `step` is
 * on its way. `recorded`: that statement was carried out, its answer is on its way, and `step` has done nothing yet.
 */
interface Boundary {
  step: string
  moment: 'unrecorded' | 'recorded'
}

const nameOf = ({ step, moment }: Boundary) => `${step} ${moment}`

interface Row {
  generation: number
  observed_generation: number
  step: string | null
  lease_token: string
  /** Whether somebody may still be at it. */
  is_leased: boolean
}

const isSettled = (row: Row) => row.observed_generation === row.generation

/**
 * What is recorded otherwise than in the column `step`: what its statement holds on the wire, and how a row shows it.
 */
const otherRecords: Record<string, { words: string; isIn(row: Row): boolean }> = {
  settled: { words: ' "observed_generation" =', isIn: isSettled },
  'change begun': { words: 'instance.change_begun', isIn: (row) => !isSettled(row) },
  'change stored': { words: '"observed_generation" = CASE', isIn: isSettled },
}

const recordOf = (step: string) => otherRecords[step] ?? { words: step, isIn: (row: Row) => row.step === step }

/**
 * While no worker runs, calls of local agents wait in their jails for the relay of the next one. Those of other agents are
 * refused, which fails their turns: their relay has a process of its own.
 */
const relayIsApart = inject('agentCluster') !== null || inject('agentDockerHost') !== null

/** Chowder as an operator runs it on a database of their own: an API, a worker, and where it is apart a relay. */
async function run(
  role: 'api' | 'worker' | 'relay',
  dataDir: string,
  url: string,
  secretKey: string,
  provider: FakeModelProvider,
) {
  return startChowder({
    dataDir,
    role,
    env: {
      DATABASE_URL: url,
      CHOWDER_SECRET_KEY: secretKey,
      ...(await agentEnv(provider.url, dataDir)),
      ...(relayIsApart && { RELAY_ROLE: 'relay' }),
    },
  })
}

/** A database's address by another way to it. */
function urlThrough(
  { host, port }: { host: string; port: number },
  { user, password, database }: pg.PoolConfig,
): string {
  return `postgresql://${user}:${encodeURIComponent(String(password))}@${host}:${port}/${database}`
}

/** The parts of a connection, also of one that is given as a URL. */
function addressOf(connection: pg.PoolConfig) {
  const { connectionString, ...parts } = connection
  if (connectionString === undefined) return parts
  const { hostname, port, username, password, pathname } = new URL(connectionString)
  return {
    host: decodeURIComponent(hostname),
    port: Number(port || 5432),
    user: decodeURIComponent(username),
    password: decodeURIComponent(password),
    database: pathname.slice(1),
  }
}

const targetOf = ({ host = '', port }: pg.PoolConfig) =>
  host.startsWith('/') ? { path: join(host, `.s.PGSQL.${port}`) } : { host, port: port ?? 5432 }

/** Chowder on a PostgreSQL of its own, which is killed with it right after it accepted a create. */
async function surviveEverything(provider: FakeModelProvider): Promise<void> {
  const dataDir = await makeDataDir()
  const secretKey = randomBytes(32).toString('base64')
  let running: ChowderProcess[] = []
  try {
    const cluster = await prepareCluster(dataDir, false)
    await startPostmaster(cluster, { durable: true })
    const address = (await findPostmaster(cluster))?.address
    if (!address) throw new Error('PostgreSQL has no address')
    const connection = { ...address, user: 'chowder', password: cluster.password, database: 'postgres' }
    const migrating = new pg.Pool({ ...connection, max: 1 })
    await migrate(migrating, migrateQueue).finally(() => migrating.end())
    const url = urlThrough({ ...address, host: encodeURIComponent(address.host) }, connection)
    const start = async () => {
      const roles = ['api', 'worker', ...(relayIsApart ? (['relay'] as const) : [])] as const
      running = await Promise.all(roles.map((role) => run(role, dataDir, url, secretKey, provider)))
      return present(running[0]).url
    }
    const before = await start()
    const key = await signUp(before, firstKey)
    const created = await api(before, key).post('/v1/instances', { name: 'accepted' })
    expect(created.status).toBe(201)
    await sleep(1)
    const postmaster = Number((await readFile(join(cluster.folder, 'postmaster.pid'), 'utf8')).split('\n')[0])
    process.kill(postmaster, 'SIGKILL')
    await Promise.all(running.map((one) => one.kill('SIGKILL')))

    // The remaining processes end by themselves, and until then prevent a new start.
    const isStarted = () =>
      startPostmaster(cluster, { durable: true }).then(
        () => true,
        (error) => {
          if (error instanceof StillInUse) return false
          throw error
        },
      )
    await until('PostgreSQL to start again', isStarted, 30_000)
    const client = api(await start(), key)
    const { id } = created.body
    await waitForStatus(client, id, 'running', resumesWithinMs + startsWithinMs)
    expect(await sandboxesSeen(dataDir).gatewaysOf(id)).toHaveLength(1)
    expect(await say(client, sessionPath(id), 'hello')).toContain('last="hello"')
    const pool = new pg.Pool({ ...connection, max: 1 })
    expect(await findIllegalTransitions(pool).finally(() => pool.end())).toEqual([])
  } finally {
    await Promise.all(running.map((one) => one.kill('SIGKILL')))
    await removeDataDir(dataDir)
  }
}

/** Real agents take seconds of a processor to start: every run kills at one boundary of each kind. */
const runs = [
  { which: 'one boundary of each kind', isWhole: false, tags: [] },
  { which: 'every boundary', isWhole: true, tags: ['long'] },
]

function killAtBoundaries(isWhole: boolean): void {
  /** Those of each run, or with the others all. */
  const chosen = <T>(always: readonly T[], others: readonly T[]): readonly T[] =>
    isWhole ? [...always, ...others] : always

  let provider: FakeModelProvider
  let database: TestDatabase
  let dataDir: string
  let sandboxes: SandboxesSeen
  const secretKey = randomBytes(32).toString('base64')
  /** Between the worker and the database, and between the API and it. */
  let workerProxy: TcpProxy
  let apiProxy: TcpProxy
  let chowder: ChowderProcess
  let worker: ChowderProcess
  let relay: ChowderProcess | undefined
  let key: string | undefined
  let client: Api
  /** Its waits are those of the others. */
  let survived: Promise<void>
  /** All that were created, in that order. */
  const ids: string[] = []

  const startWorker = async () => {
    worker = await run('worker', dataDir, urlThrough(workerProxy, addressOf(database.connection)), secretKey, provider)
  }
  const startApi = async () => {
    chowder = await run('api', dataDir, urlThrough(apiProxy, addressOf(database.connection)), secretKey, provider)
    client = api(chowder.url, key)
  }

  beforeAll(async () => {
    provider = await startFakeModelProvider()
    database = await cloneDatabase()
    dataDir = await makeDataDir()
    sandboxes = sandboxesSeen(dataDir)
    const target = targetOf(addressOf(database.connection))
    workerProxy = await openProxy(target)
    apiProxy = await openProxy(target)
    const startRelay = async () => {
      relay = await run('relay', dataDir, databaseUrl(database.connection), secretKey, provider)
    }
    await Promise.all([startWorker(), startApi(), relayIsApart && startRelay()])
    survived = surviveEverything(provider)
    survived.catch(() => {}) // the test reports it
    key = await signUp(chowder.url, firstKey)
    client = api(chowder.url, key)
  })

  afterAll(async () => {
    await Promise.allSettled([survived, ...[worker, chowder, relay].map((one) => one?.kill('SIGKILL'))])
    if (dataDir) await removeDataDir(dataDir)
    await workerProxy?.close()
    await apiProxy?.close()
    await database?.drop()
    await provider?.close()
  })

  const rowOf = async (id: string): Promise<Row> =>
    (
      await database.pool.query(
        'SELECT generation, observed_generation, step, lease_token, lease_until > now() AS is_leased FROM instances WHERE id = $1',
        [id],
      )
    ).rows[0]

  interface Kill {
    id: string
    boundary: Boundary
    hold: Hold
    isHeld: boolean
    /** How things were at the kill: the row, what was on this machine, and the gateway's configuration. */
    row: Row
    world: World
    config: string
    /** In ms after the kill: when another worker had taken it, and when it was settled. */
    takenAfter: number
    settledAfter: number
    /** Fulfilled when its agent was found to run as it should; begun as soon as it was settled. */
    runs: Promise<void>
  }

  /** Holds the connection by which this instance's step is recorded, on its way there or back. */
  function holdAt(id: string, boundary: Boundary, proxy = workerProxy): Kill {
    const { step, moment } = boundary
    const texts = [id, recordOf(step).words]
    const hold = proxy.holdWhen(texts, 'to server', moment === 'recorded' ? { after: 'request' } : {})
    const kill = { id, boundary, hold, isHeld: false } as Kill
    void hold.held.then(() => {
      kill.isHeld = true
    })
    return kill
  }

  async function untilHeld(kill: Kill): Promise<void> {
    const { id, boundary } = kill
    const where = `${id} to be held with ${nameOf(boundary)}`
    await until(where, () => kill.isHeld, startsWithinMs)
    if (boundary.moment === 'unrecorded') return
    await until(`${where}, in the database`, async () => recordOf(boundary.step).isIn(await rowOf(id)))
  }

  /** Kills the worker once all are held, follows it with another, and waits until all rows are settled. */
  async function killAll(kills: readonly Kill[], { api: alsoApi = false, check = async (_id: string) => {} } = {}) {
    for (const kill of kills) await untilHeld(kill)
    // Nor has a statement that is held been waited for too long while things are looked at.
    for (const { pid } of [worker, ...(alsoApi ? [chowder] : [])]) process.kill(pid, 'SIGSTOP')
    for (const kill of kills) kill.row = await rowOf(kill.id)
    for (const kill of kills) {
      kill.world = await sandboxes.worldOf(kill.id)
      kill.config = await sandboxes.configOf(kill.id)
    }
    const killedAt = performance.now()
    await Promise.all([worker.kill('SIGKILL'), alsoApi && chowder.kill('SIGKILL')])
    for (const { hold } of kills) hold.drop()
    await Promise.all([startWorker(), alsoApi && startApi()])
    const followUp = async (kill: Kill) => {
      const { id, boundary, row: before } = kill
      const hasSettled = async () => {
        const row = await rowOf(id)
        if (row.lease_token !== before.lease_token) kill.takenAfter ??= performance.now() - killedAt
        return isSettled(row)
      }
      const what = `${id}, killed with ${nameOf(boundary)}, to be settled`
      await until(what, hasSettled, resumesWithinMs + startsWithinMs)
      kill.settledAfter = performance.now() - killedAt
      kill.runs = check(id)
      kill.runs.catch(() => {}) // the test reports it
    }
    await Promise.all(kills.map(followUp))
  }

  /** Else the kill was elsewhere, and proves nothing. */
  function expectKilledThere({ boundary, row, world: seen }: Kill, world: World): void {
    expect(recordOf(boundary.step).isIn(row), JSON.stringify(row)).toBe(boundary.moment === 'recorded')
    expect(row.is_leased, 'its holder had not let go').toBe(true)
    expect(seen).toBe(world)
  }

  function expectInTime({ row, takenAfter, settledAfter }: Kill, startsGateway: boolean): void {
    if (!isSettled(row)) expect(takenAfter).toBeLessThan(resumesWithinMs)
    if (!startsGateway) expect(settledAfter).toBeLessThan(settlesWithinMs)
  }

  /** One sandbox with one gateway, whose token the API has, and nobody else. */
  async function expectRuns(id: string): Promise<void> {
    const { body } = await client.get(`/v1/instances/${id}`)
    expect(body).toMatchObject({ status: 'running', step: null, error_message: null })
    expect(await sandboxes.gatewaysOf(id)).toHaveLength(1)
    expect(await sandboxes.countOf(id)).toEqual(sandboxes.oneOfEach)
    const gateway = await findGateway(id)
    if (!gateway) throw new Error(`${id} has no gateway`)
    expect(await say(client, sessionPath(id), 'hello')).toContain('last="hello"')
    const ask = (token: string) =>
      askGateway(gateway, '/v1/responses', {
        method: 'POST',
        headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
        body: '{}',
        signal: AbortSignal.timeout(30_000),
      })
    // A turn costs seconds of a processor: this is none, but only whose token is good is told so.
    expect((await ask(gateway.token)).status).toBe(400)
    expect([401, 403]).toContain((await ask('0'.repeat(64))).status) // the gateway's own, or what stands before it
  }

  async function expectNothingLeft(id: string): Promise<void> {
    expect(await sandboxes.processesOf(id)).toEqual([])
    expect(Object.values(await sandboxes.countOf(id)).every((count) => count === 0)).toBe(true)
    expect((await client.get(`/v1/instances/${id}`)).body).toMatchObject({ status: 'terminated', error_message: null })
  }

  const create = async (): Promise<string> => {
    const { status, body } = await client.post('/v1/instances', { name: 'killed' })
    expect(status).toBe(201)
    ids.push(body.id)
    return body.id
  }

  const namedCases = <T extends Boundary>(boundaries: readonly T[]) =>
    boundaries.map((boundary) => ({ ...boundary, name: nameOf(boundary) }))

  describe('while they create', () => {
    const early = chosen<Boundary & { world: World }>(
      [
        { step: 'createSandbox', moment: 'unrecorded', world: 'nothing' },
        { step: 'startGateway', moment: 'unrecorded', world: 'configuration' },
      ],
      [
        { step: 'prepareRelease', moment: 'recorded', world: 'nothing' },
        { step: 'writeConfig', moment: 'unrecorded', world: 'sandbox' },
        { step: 'checkHealth', moment: 'unrecorded', world: 'processes' },
      ],
    )
    const late = [{ step: 'settled', moment: 'unrecorded', world: 'processes' }] as const
    const killed = new Map<string, Kill>()

    /** Nothing reaches the worker meanwhile: it would be at the row before its id is known here. */
    async function createHeld(boundaries: readonly Boundary[]): Promise<Kill[]> {
      workerProxy.freeze()
      const held = await Promise.all(
        boundaries.map(async (boundary) => {
          const kill = holdAt(await create(), boundary)
          killed.set(nameOf(boundary), kill)
          return kill
        }),
      )
      workerProxy.heal()
      return held
    }

    beforeAll(async () => {
      // Those that need a gateway that is up come first: the others would be held for too long.
      for (const kill of await createHeld(late)) await untilHeld(kill)
      await createHeld(early)
      await killAll([...killed.values()], { check: expectRuns })
    })

    it.each(namedCases([...early, ...late]))(
      'F1: a create whose worker was killed with $name runs, once',
      async ({ name, world }) => {
        const kill = present(killed.get(name))
        expectKilledThere(kill, world)
        expectInTime(kill, world !== 'processes')
        await kill.runs
      },
    )
  })

  describe('while they start again, or change the configuration', () => {
    const again = chosen<Boundary>(
      [{ step: 'checkHealth', moment: 'unrecorded' }],
      [{ step: 'startGateway', moment: 'recorded' }],
    )
    const newKey = chosen<Boundary>(
      [{ step: 'patchConfig', moment: 'recorded' }],
      [{ step: 'connectChannels', moment: 'unrecorded' }],
    )
    const patch = chosen<Boundary>(
      [{ step: 'change stored', moment: 'unrecorded' }],
      [{ step: 'change begun', moment: 'recorded' }],
    )
    const neverStored = 'model-never-stored'
    const killed = new Map<string, Kill>()
    const pidsBefore = new Map<string, number[]>()

    beforeAll(async () => {
      const [stopped, running] = [ids.slice(0, again.length), ids.slice(again.length)]
      for (const id of running) pidsBefore.set(id, await sandboxes.gatewaysOf(id))
      const stops = await Promise.all(stopped.map((id) => client.post(`/v1/instances/${id}/stop`)))
      expect(stops.map(({ status, body }) => [status, body.status])).toEqual(stopped.map(() => [200, 'stopped']))

      const hold = (id: string, boundary: Boundary, proxy?: TcpProxy) =>
        killed.set(nameOf(boundary), holdAt(id, boundary, proxy))
      // These need a gateway that is up: the others would be held for too long.
      for (const [index, boundary] of again.entries()) hold(present(stopped[index]), boundary)
      const started = stopped.map((id) => client.post(`/v1/instances/${id}/start`).catch(() => null))
      for (const boundary of again) await untilHeld(present(killed.get(nameOf(boundary))))

      for (const [index, boundary] of patch.entries()) hold(present(running[index]), boundary, apiProxy)
      const patched = patch.map((boundary) =>
        client
          .patch(`/v1/instances/${present(killed.get(nameOf(boundary))).id}`, {
            openclaw_config: { 'agents.defaults.model.primary': `anthropic/${neverStored}` },
          })
          .catch(() => null),
      )
      for (const boundary of patch) await untilHeld(present(killed.get(nameOf(boundary))))

      for (const [index, boundary] of newKey.entries()) hold(present(running[patch.length + index]), boundary)
      expect((await client.patch('/v1/organization', { model_api_keys: { anthropic: secondKey } })).status).toBe(200)
      await killAll([...killed.values()], { api: true, check: expectRuns })
      // Nobody was left to answer.
      expect(await Promise.all([...patched, ...started])).toEqual([...patch, ...again].map(() => null))
    })

    it.each(namedCases(again))(
      'F2: a start whose worker was killed with $name ends as running, once',
      async (boundary) => {
        const kill = present(killed.get(boundary.name))
        expectKilledThere(kill, boundary.step === 'checkHealth' ? 'processes' : 'configuration')
        expectInTime(kill, boundary.step !== 'checkHealth')
        await kill.runs
      },
    )

    it.each(namedCases(newKey))(
      'F2: a new provider key whose worker was killed with $name is with the agent, which was not disturbed',
      async ({ name }) => {
        const kill = present(killed.get(name))
        expectKilledThere(kill, 'processes')
        expectInTime(kill, false)
        await kill.runs
        expect(await sandboxes.gatewaysOf(kill.id)).toEqual(pidsBefore.get(kill.id))
        await say(client, sessionPath(kill.id), `after ${name}`)
        expect(provider.requests.findLast(({ last }) => last === `after ${name}`)?.key).toBe(secondKey)
      },
    )

    it.each(namedCases(patch))(
      'F2: a PATCH whose API and worker were killed with $name is undone, and the agent was not disturbed',
      async ({ name, moment }) => {
        const kill = present(killed.get(name))
        expectKilledThere(kill, 'processes')
        expect(kill.config.includes(neverStored), 'the gateway had it').toBe(moment === 'unrecorded')
        expectInTime(kill, false)
        await kill.runs
        expect(await sandboxes.gatewaysOf(kill.id)).toEqual(pidsBefore.get(kill.id))
        expect((await client.get(`/v1/instances/${kill.id}`)).body.openclaw_config).toBeNull()
        expect(await say(client, sessionPath(kill.id, 'undone'), 'hello')).not.toContain(neverStored)
      },
    )
  })

  describe('while turns run in the background', () => {
    /** The words of the statement at which the API is killed, and whether it was carried out. */
    const moments = [
      { name: 'sent, unrecorded', words: 'SET sent_at = now()', isDone: false },
      { name: 'recorded as sent, and not sent', words: 'SET sent_at = now()', isDone: true },
      { name: 'ended, unrecorded', words: 'SET status = CASE status WHEN', isDone: false },
      { name: 'accepted, uncommitted', words: 'insert_responses', isDone: true },
    ]
    const dashed = (name: string) => name.replaceAll(/\W+/g, '-')
    const path = (name: string) => sessionPath(present(ids[0]), dashed(name))
    const post = (name: string) => client.post(path(name), turnOf(name), { 'idempotency-key': dashed(name) })
    const turnOf = (name: string) => ({ model: 'openclaw', input: `turn ${name}`, background: true })
    /** The answers; null where none came. */
    const killed = new Map<string, Promise<Answer | null>>()

    beforeAll(async () => {
      for (const { name, words, isDone } of moments) {
        const hold = apiProxy.holdWhen(words, 'to server', isDone ? { after: 'request' } : {})
        const answer = post(name).catch(() => null)
        killed.set(name, answer)
        let isHeld = false
        void hold.held.then(() => {
          isHeld = true
        })
        await until(`the turn to be held when it is ${name}`, () => isHeld, 60_000)
      }
      await Promise.all([worker.kill('SIGKILL'), chowder.kill('SIGKILL')])
      apiProxy.cut()
      apiProxy.heal()
      await Promise.all([startWorker(), startApi()])
    })

    it.each(moments)('F2: a turn whose API and worker were killed when it was $name runs, once', async ({ name }) => {
      const first = await killed.get(name)
      expect(first?.status).toBe(name.startsWith('accepted') ? undefined : 200)
      const again = await post(name)
      expect(again.status).toBe(200)
      if (first) expect(again.body.id).toBe(first.body.id)
      const response = await until(
        'the turn to end',
        async () => {
          const { body } = await client.get(`${sessionPath(present(ids[0]))}/${again.body.id}`)
          return body.status !== 'queued' && body.status !== 'in_progress' && body
        },
        60_000,
      )
      expect(response).toMatchObject({ status: 'completed', error: null })
      expect(provider.requests.filter(({ last }) => last === `turn ${name}`)).toHaveLength(1)
    })
  })

  describe('while they stop and delete', () => {
    const stops = chosen<Boundary>(
      [{ step: 'stopSandbox', moment: 'recorded' }],
      [
        { step: 'stopSandbox', moment: 'unrecorded' },
        { step: 'settled', moment: 'unrecorded' },
      ],
    )
    const deletes = chosen<Boundary>(
      [
        { step: 'destroySandbox', moment: 'recorded' },
        { step: 'settled', moment: 'unrecorded' },
      ],
      [{ step: 'destroySandbox', moment: 'unrecorded' }],
    )
    const stopped = new Map<string, Kill>()
    const deleted = new Map<string, Kill>()

    beforeAll(async () => {
      for (const [index, boundary] of stops.entries())
        stopped.set(nameOf(boundary), holdAt(present(ids[index]), boundary))
      for (const [index, boundary] of deletes.entries())
        deleted.set(nameOf(boundary), holdAt(present(ids[stops.length + index]), boundary))
      const askedAt = performance.now()
      const answers = [...stopped.values()].map(async ({ id }) => {
        const { status, body } = await client.post(`/v1/instances/${id}/stop`)
        return { status, body, ms: performance.now() - askedAt }
      })
      const gone = await Promise.all([...deleted.values()].map(({ id }) => client.delete(`/v1/instances/${id}`)))
      expect(gone.map(({ status }) => status)).toEqual(deletes.map(() => 204))
      await killAll([...stopped.values(), ...deleted.values()])
      // The API survived. A caller waits for the next worker for a minute at most, and then gets a 202.
      for (const { status, body, ms } of await Promise.all(answers)) {
        expect(body.status).toBe('stopped')
        if (status !== 200) expect([status, ms > 59_000]).toEqual([202, true])
      }
    })

    const worldAt = ({ step }: Boundary, after: World): World => (step === 'settled' ? after : 'processes')

    it.each(namedCases(stops))('F2: a stop whose worker was killed with $name is stopped', async (boundary) => {
      const kill = present(stopped.get(boundary.name))
      expectKilledThere(kill, worldAt(boundary, 'configuration'))
      expectInTime(kill, false)
      const { body } = await client.get(`/v1/instances/${kill.id}`)
      expect(body).toMatchObject({ status: 'stopped', step: null, error_message: null })
      expect(await sandboxes.worldOf(kill.id)).toBe('configuration')
    })

    it.each(namedCases(deletes))('F2: a delete whose worker was killed with $name leaves nothing', async (boundary) => {
      const kill = present(deleted.get(boundary.name))
      expectKilledThere(kill, worldAt(boundary, 'nothing'))
      expectInTime(kill, false)
      await expectNothingLeft(kill.id)
    })

    it('F2: no sandbox or process is left once all instances are deleted, and their histories are valid', async () => {
      for (const { id } of stopped.values()) expect((await client.delete(`/v1/instances/${id}`)).status).toBe(204)
      const isSettled = async (id: string) => {
        const row = await rowOf(id)
        return row.observed_generation === row.generation
      }
      for (const { id } of stopped.values()) await until(`${id} to be settled`, () => isSettled(id), resumesWithinMs)
      for (const id of ids) await expectNothingLeft(id)
      for (const folder of ['sandboxes', 'uids', 'ports'])
        expect(await readdir(join(dataDir, folder)).catch(() => []), folder).toEqual([])
      expect(await findIllegalTransitions(database.pool)).toEqual([])
    })
  })

  it('F1: an accepted create survives kill -9 of everything (API, worker, PostgreSQL) one millisecond after the 201', () =>
    survived)
}

for (const { which, isWhole, tags } of runs)
  describe(`workers that are killed at the boundaries of steps: ${which}`, { tags }, () => killAtBoundaries(isWhole))
