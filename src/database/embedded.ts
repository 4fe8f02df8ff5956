import { resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import pg from 'pg'
import { StartupError } from '#errors/startup-error.ts'
import { prepareDataFolder } from '#platform/data-folder.ts'
import type { Logger } from '#platform/log.ts'
import { poll } from '#platform/poll.ts'
import { type Cluster, databaseName, prepareCluster } from './embedded-cluster.ts'
import { type Address, findPostmaster, StillInUse, startPostmaster, stopPostmaster } from './embedded-postmaster.ts'

export interface EmbeddedOptions {
  /** The data folder: the cluster is in its `postgres` folder, the password in its `database-password`. */
  dataDir: string
  log: Logger
  /** False is faster, and a power cut may destroy the data. For tests. True by default. */
  durable?: boolean
  /** Aborts the start, and stops a PostgreSQL that it has started. */
  signal?: AbortSignal
  /** Called once when the database is lost and cannot be restarted: the process should exit. */
  onFatal?: (error: Error) => void
}

export interface EmbeddedPostgres {
  /** For `pg.Pool` and `pg.Client`. It stays valid when PostgreSQL is restarted. */
  connection: { host: string; port: number; user: string; password: string; database: string }
  /** The same as a URL, which contains the password. */
  url: string
  /** Stops PostgreSQL and disconnects its clients, as the last act of a process. Throws an Error when it still runs. */
  stop(): Promise<void>
}

/** The holder of this advisory lock in the database `postgres` owns the data folder. There are no other locks in it. */
const ownerLock = 1_667_788_914

const pauseMs = 100
const reachTimeoutMs = 120_000
/** How long a killed PostgreSQL, or another start, may keep the cluster in use. */
const stillInUseMs = 10_000
const lockTimeoutMs = 3000
const maxRestarts = 5
const restartWindowMs = 10 * 60_000

/** Another process owns the data folder. */
class InUse extends StartupError {
  override name = 'InUse'
}

/** The process owns the data folder as long as this connection is open. */
interface Ownership {
  client: pg.Client
  address: Address
}

async function connect(address: Address, cluster: Cluster): Promise<pg.Client> {
  const client = new pg.Client({
    ...address,
    user: databaseName,
    password: cluster.password,
    database: 'postgres',
    application_name: `chowder-owner pid ${process.pid}`,
    connectionTimeoutMillis: 5000,
    keepAlive: true,
  })
  // The event `end` always follows, and its listener handles the loss.
  client.on('error', () => undefined)
  try {
    await client.connect()
    return client
  } catch (error) {
    client.end().catch(() => undefined)
    throw error
  }
}

/** A wrong password or a missing database is permanent. Other errors may come from a start or a stop in progress. */
const isFinal = (error: unknown): boolean =>
  error instanceof pg.DatabaseError && (error.code?.startsWith('28') === true || error.code === '3D000')

interface ReachOptions {
  durable: boolean
  port?: number | undefined
  signal: AbortSignal
  /** Called after this process has started PostgreSQL. */
  onStarted: () => void
}

/** Connects to the cluster's PostgreSQL within 2 minutes, and starts it if needed. A recovery may take a minute. */
async function reach(cluster: Cluster, { durable, port, signal, onStarted }: ReachOptions): Promise<Ownership> {
  let inUseSince: number | undefined
  let failure: unknown

  async function tryToStart() {
    try {
      await startPostmaster(cluster, { durable, port })
      onStarted()
      return findPostmaster(cluster)
    } catch (error) {
      inUseSince ??= performance.now()
      if (error instanceof StillInUse && performance.now() - inUseSince < stillInUseMs) return undefined
      throw error
    }
  }
  async function tryToConnect(): Promise<Ownership | undefined> {
    const running = (await findPostmaster(cluster)) ?? (await tryToStart())
    if (!running?.address) return undefined
    try {
      return { client: await connect(running.address, cluster), address: running.address }
    } catch (error) {
      if (isFinal(error)) throw error
      failure = error
      return undefined
    }
  }

  const owned = await poll(tryToConnect, { pauseMs, timeoutMs: reachTimeoutMs, signal })
  if (owned) return owned
  throw new Error(`the embedded database accepts no connections (its log: ${cluster.logFile})`, { cause: failure })
}

/** Takes the owner's lock. The attempts last 3 s, because the lock of a killed process is released with a delay. */
async function takeLock(client: pg.Client, dataDir: string, signal: AbortSignal): Promise<void> {
  const isTaken = async () => {
    const { rows } = await client.query<{ taken: boolean }>('SELECT pg_try_advisory_lock($1) AS taken', [ownerLock])
    return rows[0]?.taken
  }
  if (await poll(isTaken, { pauseMs, timeoutMs: lockTimeoutMs, signal })) return
  const { rows } = await client.query<{ application_name: string }>(
    `SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid)
     WHERE locktype = 'advisory' AND granted AND ((classid::bigint << 32) | objid::bigint) = $1`,
    [ownerLock],
  )
  const holder = rows[0]?.application_name ?? 'a process that is ending'
  throw new InUse(
    `the data folder ${dataDir} is in use by another Chowder (${holder}): stop that one, or set CHOWDER_DATA_DIR to ` +
      'another folder',
  )
}

const connectionTo = (address: Address, cluster: Cluster): EmbeddedPostgres['connection'] => ({
  ...address,
  user: databaseName,
  password: cluster.password,
  database: databaseName,
})

/**
 * The connection to the PostgreSQL of a running Chowder, for another process; undefined when none runs in the data
 * folder. The caller does not own the data folder: when that Chowder stops, the connection breaks.
 */
export async function reachEmbeddedPostgres(dataDir: string): Promise<EmbeddedPostgres['connection'] | undefined> {
  const cluster = await prepareCluster(resolve(dataDir), true)
  const running = await findPostmaster(cluster)
  return running?.address && connectionTo(running.address, cluster)
}

async function makeDatabase(client: pg.Client): Promise<void> {
  const { rowCount } = await client.query('SELECT FROM pg_database WHERE datname = $1', [databaseName])
  if (rowCount === 0) await client.query(`CREATE DATABASE ${databaseName}`)
}

/**
 * Makes this process the owner of the data folder and of the PostgreSQL in it. The first start creates the cluster. A
 * PostgreSQL that still runs after its owner was killed is adopted. When PostgreSQL dies, it is restarted, at most 5
 * times in 10 minutes, after which `onFatal` is called. The ownership ends with the process. After a crash of the
 * process, PostgreSQL continues to run until the next owner adopts it. Throws an Error with the remedy, which names the
 * owner when another process owns the folder.
 */
export async function startEmbeddedPostgres(options: EmbeddedOptions): Promise<EmbeddedPostgres> {
  const { log, durable = true, onFatal } = options
  const dataDir = resolve(options.dataDir)
  await prepareDataFolder(dataDir)
  const cluster = await prepareCluster(dataDir, durable)
  const ending = new AbortController()
  const restarts: number[] = []

  async function own(signal: AbortSignal, port?: number): Promise<Ownership> {
    let isStarted = false
    let owned: Ownership | undefined
    try {
      owned = await reach(cluster, { durable, port, signal, onStarted: () => (isStarted = true) })
      await takeLock(owned.client, dataDir, signal)
      await makeDatabase(owned.client)
      log.info({ folder: cluster.folder }, `embedded PostgreSQL ${isStarted ? 'started' : 'adopted, it was running'}`)
      return owned
    } catch (error) {
      // When another process owns it, it stays up, even if this process has started it.
      if (isStarted && !(error instanceof InUse)) await stopPostmaster(cluster).catch(() => undefined)
      await owned?.client.end().catch(() => undefined)
      throw error
    }
  }

  const { signal } = options
  let owned = await own(signal ? AbortSignal.any([signal, ending.signal]) : ending.signal)
  const { address } = owned
  const loopbackPort = address.host.startsWith('/') ? undefined : address.port
  let recovery: Promise<void> = Promise.resolve()

  function giveUp(error: Error): void {
    log.fatal({ err: error }, 'the embedded database is lost')
    onFatal?.(error)
  }

  async function recover(): Promise<void> {
    for (let pause = 0; !ending.signal.aborted; pause = pause * 2 || 1000) {
      const now = performance.now()
      if (restarts.filter((time) => time > now - restartWindowMs).length >= maxRestarts) {
        return giveUp(new Error(`PostgreSQL was lost more than ${maxRestarts} times in 10 minutes: ${cluster.logFile}`))
      }
      restarts.push(now)
      try {
        await sleep(pause, undefined, { signal: ending.signal })
        owned = await own(ending.signal, loopbackPort)
        return watch()
      } catch (error) {
        if (ending.signal.aborted) return
        if (error instanceof InUse) return giveUp(error)
        log.error({ err: error }, 'the embedded database cannot be reached')
      }
    }
  }

  function watch(): void {
    owned.client.once('end', () => {
      if (ending.signal.aborted) return
      log.warn('the connection to the embedded database was lost')
      recovery = recover()
    })
  }
  watch()

  async function stop(): Promise<void> {
    ending.abort()
    await recovery
    // The lock is still held, so no other process can adopt the stopping PostgreSQL.
    await stopPostmaster(cluster)
    await owned.client.end().catch(() => undefined)
  }
  let stopped: Promise<void> | undefined

  return {
    connection: connectionTo(address, cluster),
    url: `postgresql://${databaseName}:${cluster.password}@${encodeURIComponent(address.host)}:${address.port}/${databaseName}`,
    stop: () => (stopped ??= stop()),
  }
}
