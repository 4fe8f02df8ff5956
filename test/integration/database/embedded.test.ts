import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  chmod,
  chown,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  readlink,
  rename,
  rm,
  stat,
  writeFile,
} from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import pg from 'pg'
import pino from 'pino'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { type EmbeddedPostgres, startEmbeddedPostgres } from '#database/embedded.ts'
import { present } from '../../support/present.ts'

const run = promisify(execFile)
const isRoot = process.getuid?.() === 0
const log = pino({ level: 'silent' })
const holderProgram = fileURLToPath(new URL('../../support/embedded-holder.ts', import.meta.url))

/** A data folder that is made once for the tests that do not need a new one. */
let madeHome: string
let home: string
let dataDir: string
let running: EmbeddedPostgres[]
let holders: ChildProcess[]

async function makeHome(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'chowder-embedded-'))
  await chmod(folder, 0o711)
  return folder
}

beforeAll(async () => {
  madeHome = await makeHome()
})

beforeEach(async () => {
  home = await makeHome()
  dataDir = join(home, 'data')
  running = []
  holders = []
})

afterEach(async () => {
  for (const holder of holders) await kill(holder)
  for (const database of running) await database.stop()
  if (holders.length > 0) await (await start()).stop()
  await rm(home, { recursive: true, force: true })
})

afterAll(() => rm(madeHome, { recursive: true, force: true }))

async function start(options: { dataDir?: string; onFatal?: (error: Error) => void } = {}): Promise<EmbeddedPostgres> {
  const database = await startEmbeddedPostgres({ dataDir, log, durable: false, ...options })
  running.push(database)
  return database
}

/** Another process that owns the data folder. */
async function startHolder(user: { uid?: number; gid?: number } = {}): Promise<ChildProcess> {
  const child = spawn(process.execPath, [holderProgram, dataDir], { stdio: ['ignore', 'pipe', 'inherit'], ...user })
  holders.push(child)
  const [said] = await Promise.race([once(present(child.stdout), 'data'), once(child, 'exit')])
  expect(String(said)).toBe('ready\n')
  return child
}

async function kill(child: ChildProcess): Promise<void> {
  if (!child.kill('SIGKILL')) return
  await once(child, 'exit')
}

const pidFile = (folder = dataDir) => join(folder, 'postgres', 'data', 'postmaster.pid')
const postmasterPid = async (folder = dataDir) => Number((await readFile(pidFile(folder), 'utf8')).split('\n')[0])
const modeOf = async (path: string) => (await stat(path)).mode & 0o777

/** Kills PostgreSQL as the kernel would, without waiting for its children. */
async function killPostmaster(folder = dataDir): Promise<number> {
  const pid = await postmasterPid(folder)
  process.kill(pid, 'SIGKILL')
  return pid
}

/** Runs a statement until it succeeds, for up to 10 s: the database may be starting again. */
async function query(database: EmbeddedPostgres, text: string): Promise<unknown[]> {
  const deadline = performance.now() + 10_000
  for (;;) {
    const client = new pg.Client({ ...database.connection, connectionTimeoutMillis: 2000 })
    client.on('error', () => undefined)
    try {
      await client.connect()
      return (await client.query(text)).rows
    } catch (error) {
      if (performance.now() > deadline) throw error
      await sleep(50)
    } finally {
      await client.end().catch(() => undefined)
    }
  }
}

/** Waits until the folder has an owner again: for a moment any process might take it. */
async function ownedAgain(database: EmbeddedPostgres): Promise<void> {
  await expect
    .poll(() => query(database, "SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted"), { timeout: 10_000 })
    .toHaveLength(1)
}

describe('a first start', () => {
  test('makes a PostgreSQL 18 with an empty database in UTF-8, reachable by object and by URL', async () => {
    const database = await start()
    const client = new pg.Client({ connectionString: database.url })
    await client.connect()
    const { rows } = await client.query(
      `SELECT current_database() AS name, current_setting('server_version_num')::int / 10000 AS major,
              current_setting('server_encoding') AS encoding, current_setting('listen_addresses') AS addresses`,
    )
    await client.end()
    expect(rows).toEqual([{ name: 'chowder', major: 18, encoding: 'UTF8', addresses: '' }])
    expect(await query(database, 'SELECT 1 AS one')).toEqual([{ one: 1 }])
  })

  test('of two at once makes one the owner; the error of the other names it', async () => {
    const results = await Promise.allSettled([start(), start()])
    const refused = results.filter((result) => result.status === 'rejected')
    expect(refused).toHaveLength(1)
    expect(String(refused[0]?.reason)).toContain(`in use by another Chowder (chowder-owner pid ${process.pid})`)
    expect(running).toHaveLength(1)
    expect(await query(present(running[0]), 'SELECT 1 AS one')).toEqual([{ one: 1 }])
  })

  test('in a folder too deep for a socket listens on loopback only', async () => {
    const deep = join(home, 'd'.repeat(60), "it's deep")
    const database = await start({ dataDir: deep })
    expect(database.connection.host).toBe('127.0.0.1')
    expect(await query(database, 'SHOW listen_addresses')).toEqual([{ listen_addresses: '127.0.0.1' }])
    await killPostmaster(deep)
    expect(await query(database, 'SELECT 1 AS one')).toEqual([{ one: 1 }])
  })

  test.runIf(isRoot)('works for an ordinary user, whose cluster root then leaves to them', async (context) => {
    for (let folder = dirname(holderProgram); folder !== '/'; folder = dirname(folder)) {
      context.skip(((await modeOf(folder)) & 0o001) === 0, 'the working copy is closed to other users')
    }
    const user = { uid: 1, gid: 1 } // PostgreSQL wants a user with a name
    await mkdir(dataDir, { mode: 0o711 })
    await chown(dataDir, user.uid, user.gid)
    const holder = await startHolder(user)
    expect((await stat(`/proc/${await postmasterPid()}`)).uid).toBe(user.uid)
    await kill(holder)
    await killPostmaster()
    await start()
    expect((await stat(`/proc/${await postmasterPid()}`)).uid).toBe(user.uid)
  })
})

describe('a data folder', () => {
  beforeEach(() => {
    dataDir = join(madeHome, 'data')
  })

  test('in use refuses a second start with the name of the holder and a remedy, and stays usable', async () => {
    const holder = await startHolder()
    const pid = await postmasterPid()
    await expect(start()).rejects.toThrow(
      `the data folder ${dataDir} is in use by another Chowder (chowder-owner pid ${holder.pid}): stop that one, or set ` +
        'CHOWDER_DATA_DIR to another folder',
    )
    expect(await postmasterPid()).toBe(pid)
    expect(holder.exitCode).toBeNull()
  })

  test('is free after the stop, and none of its processes runs', async () => {
    const first = await start()
    const pid = await postmasterPid()
    await query(first, 'CREATE TABLE stopped AS SELECT 42 AS answer')
    await first.stop()
    // A zombie may stay, where nobody waits for orphans; it runs no program.
    await expect.poll(() => readlink(`/proc/${pid}/exe`).catch(({ code }) => code), { timeout: 5000 }).toBe('ENOENT')
    expect(await query(await start(), 'SELECT answer FROM stopped')).toEqual([{ answer: 42 }])
  })

  test('hides the password and the files of PostgreSQL from other users, and the password from arguments', async () => {
    const database = await start()
    expect(await modeOf(join(dataDir, 'database-password'))).toBe(0o600)
    for (const folder of ['data', 'socket', 'log']) {
      expect(await modeOf(join(dataDir, 'postgres', folder))).toBe(0o700)
      expect((await stat(join(dataDir, 'postgres', folder))).uid === 0).toBe(false)
    }
    const left = await readdir(join(dataDir, 'postgres'))
    expect(left.filter((name) => name.startsWith('.'))).toEqual([])
    const commandLine = await readFile(`/proc/${await postmasterPid()}/cmdline`, 'utf8')
    expect(commandLine).not.toContain(database.connection.password)
  })

  test('has no running PostgreSQL after a start that is given up', async () => {
    await expect(
      startEmbeddedPostgres({ dataDir, log, durable: false, signal: AbortSignal.abort(new Error('given up')) }),
    ).rejects.toThrow('given up')
    await expect(stat(pidFile())).rejects.toThrow('ENOENT')
  })

  test('without its password file fails with the path of the file, and makes no new one', async () => {
    const first = await start()
    await first.stop()
    const passwordFile = join(dataDir, 'database-password')
    await rename(passwordFile, `${passwordFile}.away`)
    await expect(start()).rejects.toThrow(`restore ${passwordFile} from a backup`)
    await rename(`${passwordFile}.away`, passwordFile)
  })
})

describe('after kill -9', () => {
  beforeEach(() => {
    dataDir = join(madeHome, 'data')
  })

  test('of Node only, the PostgreSQL that runs on is adopted', async () => {
    const holder = await startHolder()
    const pid = await postmasterPid()
    await kill(holder)
    await start()
    expect(await postmasterPid()).toBe(pid)
  })

  test('of both, the data is recovered', async () => {
    const first = await start()
    await query(first, 'CREATE TABLE killed AS SELECT 42 AS answer')
    await first.stop()
    const holder = await startHolder()
    await killPostmaster()
    await kill(holder)
    expect(await query(await start(), 'SELECT answer FROM killed')).toEqual([{ answer: 42 }])
  })

  test('of PostgreSQL only, it is started again at the same address, and the folder keeps its owner', async () => {
    const database = await start()
    const pid = await killPostmaster()
    expect(await query(database, 'SELECT 1 AS one')).toEqual([{ one: 1 }])
    expect(await postmasterPid()).not.toBe(pid)
    await ownedAgain(database)
    await expect(start()).rejects.toThrow(`in use by another Chowder (chowder-owner pid ${process.pid})`)
  })

  test('of PostgreSQL a sixth time in 10 minutes, onFatal is called', async () => {
    const lost = Promise.withResolvers<Error>()
    const database = await start({ onFatal: lost.resolve })
    for (let times = 0; times < 5; times++) {
      await killPostmaster()
      await ownedAgain(database)
    }
    await killPostmaster()
    expect((await lost.promise).message).toContain('PostgreSQL was lost more than 5 times in 10 minutes')
  })

  test.skipIf(!isRoot)('from a copy of the data folder that lost its owners', async () => {
    await (await start()).stop()
    await run('cp', ['-r', dataDir, `${dataDir}-copy`])
    await rm(dataDir, { recursive: true })
    await rename(`${dataDir}-copy`, dataDir)
    const restored = await start()
    expect((await stat(join(dataDir, 'postgres', 'log', 'postgres.log'))).uid).not.toBe(0)
    await restored.stop()
  })

  test('with a pid file that names another process, that process goes on running', async () => {
    const first = await start()
    const socketLock = join(dataDir, 'postgres', 'socket', '.s.PGSQL.5432.lock')
    const locks = await Promise.all(
      [pidFile(), socketLock].map(async (path) => ({ path, text: await readFile(path, 'utf8') })),
    )
    await first.stop()
    // A process of the same user: PostgreSQL takes processes of other users for dead.
    const { uid, gid } = await stat(join(dataDir, 'postgres', 'data'))
    const stranger = spawn('sleep', ['60'], { uid, gid, stdio: 'ignore' })
    onTestFinished(() => void stranger.kill('SIGKILL'))
    await once(stranger, 'spawn')
    for (const { path, text } of locks) {
      await writeFile(path, text.replace(/^\d+/, String(stranger.pid)))
      await chown(path, uid, gid)
    }
    const next = await start()
    expect(await postmasterPid()).not.toBe(stranger.pid)
    await next.stop()
    expect(stranger.exitCode ?? stranger.signalCode).toBeNull()
  })
})
