import { execFile } from 'node:child_process'
import { createWriteStream } from 'node:fs'
import { glob, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { Redis } from 'ioredis'
import pg from 'pg'
import type { GatewaySecrets } from '#openclaw/gateway/gateway-secrets.ts'
import { secretsPath } from '#openclaw/inside/launch.ts'
import { allowed } from './allowed.ts'
import { type Encoding, formsOf } from './forms.ts'
import { knownSecrets, noteSecret, type Secret, takeTexts } from './secrets.ts'

/** Where to look. Beside these, each search looks at all processes of this machine, and what was kept for it. */
export interface Places {
  /** With all that is in them; not through symbolic links. */
  folders?: readonly string[]
  databases?: readonly pg.PoolConfig[]
  redisUrl?: string | null
  /** Anything else, by the name of its place. */
  texts?: Readonly<Record<string, string>>
}

/** A secret in the clear. */
export interface Found {
  secret: Secret
  encoding: Encoding
  /** The path of a file; or `database/…`, `redis`, `processes/…`, or the name of a text, such as `answers`. */
  place: string
}

const batchRows = 1000
const uuid = /[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}/
/** The command line of a process of Chowder, also of one on a fake cloud. */
const chowder = /\/(?:src\/main|chaos\/chowder)\.ts\0/
/** Folders with programs: a copy of Node.js, and the packages of channels. They take most of the time, and hold no data. */
const programs = ['node', 'node_modules']

/** Writes a database into a folder, to a file for each table, and one for what its connections run. */
async function dumpDatabase(connection: pg.PoolConfig, folder: string): Promise<void> {
  const client = new pg.Client(connection)
  await client.connect()
  const rows = async (select: string) => (await client.query<{ text: string }>(select)).rows
  async function* texts(table: string): AsyncGenerator<string> {
    await client.query(`DECLARE every_row NO SCROLL CURSOR FOR SELECT to_json(t)::text AS text FROM ${table} t`)
    for (;;) {
      const batch = await rows(`FETCH ${batchRows} FROM every_row`)
      for (const { text } of batch) yield `${text}\n`
      if (batch.length < batchRows) break
    }
    await client.query('CLOSE every_row')
  }
  try {
    await client.query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL bytea_output = 'escape'")
    const tables = await rows(
      `SELECT c.oid::regclass::text AS text FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
       WHERE relkind IN ('r', 'm') AND nspname NOT IN ('pg_catalog', 'information_schema') AND pg_relation_size(c.oid) > 0
       UNION ALL SELECT 'pg_stat_activity'`,
    )
    for (const { text } of tables) await pipeline(texts(text), createWriteStream(join(folder, text), { flags: 'a' }))
  } finally {
    await client.end()
  }
}

/** What a Redis holds, by its kinds of values. */
async function dumpRedis(url: string): Promise<string> {
  const redis = new Redis(url, { maxRetriesPerRequest: 3 })
  const read: Record<string, (key: string) => Promise<unknown>> = {
    string: (key) => redis.get(key),
    hash: (key) => redis.hgetall(key),
    list: (key) => redis.lrange(key, 0, -1),
    set: (key) => redis.smembers(key),
    zset: (key) => redis.zrange(key, 0, -1),
    stream: (key) => redis.xrange(key, '-', '+'),
  }
  const lines: string[] = []
  try {
    for await (const keys of redis.scanStream({ count: 500 }) as AsyncIterable<string[]>)
      for (const key of keys) lines.push(JSON.stringify([key, await read[await redis.type(key)]?.(key)]))
  } finally {
    redis.disconnect()
  }
  return lines.join('\n')
}

/** What there is to see of a process in its folder of /proc, and how places name it. */
const shownOfProcess = { cmdline: 'argv', environ: 'environment', comm: 'title' } as const

async function processFiles(): Promise<string[]> {
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name))
  return pids.flatMap((pid) => Object.keys(shownOfProcess).map((name) => `/proc/${pid}/${name}`))
}

async function placeOfProcess(path: string): Promise<string> {
  const [, pid, name] = /^\/proc\/(\d+)\/(\w+)$/.exec(path) ?? []
  const argv = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '') // it has ended
  const what = shownOfProcess[name as keyof typeof shownOfProcess]
  return `processes/${chowder.test(argv) ? 'chowder' : 'other'}/${pid}/${what}`
}

/** Notes the tokens of the gateways whose sandboxes are in these folders. */
async function noteTokens(folders: readonly string[]): Promise<void> {
  for (const folder of folders)
    for await (const path of glob(`${folder}/{sandboxes/*,*/_data}/home/${secretsPath}`)) {
      const text = await readFile(path, 'utf8').catch(() => '')
      const [id = null] = uuid.exec(path) ?? []
      let secrets: Partial<GatewaySecrets>
      try {
        secrets = JSON.parse(text)
      } catch {
        continue // it is being written
      }
      noteSecret('gateway token', secrets.gatewayToken ?? '', id)
      noteSecret('relay token', secrets.relayToken ?? '', id)
    }
}

/** Files are removed meanwhile, processes end, and some show their environment to nobody. */
const expectedProblem = /: No such (?:file or directory|process)$|\/environ: Permission denied$/

/** Returns what GNU grep finds of the patterns, each time with the path of its file. */
function grep(patterns: string, paths: readonly string[]): Promise<[path: string, form: string][]> {
  const excluded = programs.map((name) => `--exclude-dir=${name}`)
  const args = ['-raoFH', '--null', ...excluded, '-f', patterns, '--', ...paths]
  return new Promise((resolve, reject) => {
    const options = { env: { ...process.env, LC_ALL: 'C' }, maxBuffer: 256 * 1024 * 1024, encoding: 'utf8' } as const
    execFile('grep', args, options, (_error, found, problems) => {
      const others = problems.split('\n').filter((line) => line !== '' && !expectedProblem.test(line))
      if (others.length > 0) return reject(new Error(`grep: ${others.join('\n').slice(0, 1000)}`))
      const lines = found.split('\n').filter(Boolean)
      resolve(lines.map((line) => line.split('\0') as [string, string]))
    })
  })
}

const isAllowed = ({ secret: { kind, instanceId }, place }: Found): boolean =>
  allowed.some((one) => one.kinds.includes(kind) && one.place.test(place)) &&
  (instanceId === null || !place.startsWith('/') || place.includes(instanceId))

/** Returns the known secrets that stand in the clear where none may, each once for each place and encoding. */
export async function findSecrets({
  folders = [],
  databases = [],
  redisUrl = null,
  texts = {},
}: Places): Promise<Found[]> {
  await noteTokens(folders)
  const forms = new Map(
    knownSecrets().flatMap((secret) =>
      formsOf(secret.value)
        .map(([form, encoding]) => [form, { secret, encoding }] as const)
        .reverse(),
    ),
  )
  if (forms.size === 0) return []
  const folder = await mkdtemp(join(tmpdir(), 'chowder-canary-'))
  const shown = join(folder, 'shown')
  try {
    await mkdir(join(shown, 'database'), { recursive: true })
    for (const connection of databases) await dumpDatabase(connection, join(shown, 'database'))
    if (redisUrl !== null) await writeFile(join(shown, 'redis'), await dumpRedis(redisUrl))
    for (const [name, text] of Object.entries({ ...takeTexts(), ...texts })) await writeFile(join(shown, name), text)
    const patterns = join(folder, 'patterns')
    await writeFile(patterns, [...forms.keys()].join('\n'))
    const found = new Map<string, Found>()
    for (const [path, form] of await grep(patterns, [shown, ...folders, ...(await processFiles())])) {
      const own = path.startsWith(shown) ? path.slice(shown.length + 1) : path
      const place = path.startsWith('/proc/') ? await placeOfProcess(path) : own
      const { secret, encoding } = forms.get(form) ?? {}
      if (secret && encoding) found.set(`${secret.value} ${encoding} ${place}`, { secret, encoding, place })
    }
    return [...found.values()].filter((one) => !isAllowed(one))
  } finally {
    await rm(folder, { recursive: true })
  }
}

/** Throws an error that names the places where known secrets stand in the clear and may not. */
export async function requireNoSecrets(places: Places): Promise<void> {
  const found = await findSecrets(places)
  if (found.length === 0) return
  const lines = found.map(({ secret, encoding, place }) => `${secret.kind} (${encoding}) in ${place}`)
  throw new Error(`secrets in the clear:\n${[...new Set(lines)].slice(0, 50).join('\n')}`)
}
