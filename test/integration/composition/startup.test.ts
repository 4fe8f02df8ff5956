import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { chmod, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import { hostname, tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import pg from 'pg'
import { pino } from 'pino'
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest'
import { openForOperator } from '#composition/database.ts'
import { createDrain } from '#composition/drain.ts'
import { createDocker } from '#composition/sandboxes.ts'
import { welcome } from '#composition/welcome.ts'
import { onlyRegion } from '#instances/regions.ts'
import { createQueue } from '#lifecycle/queue/queue.ts'
import { explainListening } from '#platform/listen-fault.ts'
import { logSerializers } from '#platform/log.ts'
import { loadConfig } from '#settings/config.ts'
import { compiledOnce } from '../../support/compile-cache.ts'
import { freePort } from '../../support/free-port.ts'
import { openStubDockerd } from '../../support/stub-dockerd.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const run = promisify(execFile)
const root = fileURLToPath(new URL('../../../', import.meta.url))
const key = Buffer.alloc(32, 7).toString('base64')
const { PATH = '' } = process.env

const folder = await mkdtemp(join(tmpdir(), 'chowder-startup-'))
await chmod(folder, 0o711)
afterAll(() => rm(folder, { recursive: true, force: true }))

/** Runs a program as an npm script does. Returns what it says, and its exit code. */
async function runScript(
  args: string[],
  { env = {}, cwd = root }: { env?: Record<string, string>; cwd?: string } = {},
) {
  const options = { cwd, env: { ...compiledOnce, PATH, HOME: folder, CHOWDER_DATA_DIR: join(folder, 'data'), ...env } }
  const launch = ['--import', join(root, 'src/launch.mjs'), ...args]
  return run(process.execPath, launch, options).then(
    ({ stdout, stderr }) => ({ code: 0, said: stdout + stderr }),
    ({ code, stdout, stderr }) => ({ code, said: stdout + stderr }),
  )
}

describe('the launcher of npm scripts', () => {
  test('without packages says to run npm ci', async () => {
    const copy = join(folder, 'checkout')
    await mkdir(join(copy, 'src'), { recursive: true })
    await run('cp', [join(root, 'src/launch.mjs'), join(copy, 'src/launch.mjs')])
    const failure = await run(process.execPath, [join(copy, 'src/launch.mjs')]).catch((error) => error)
    expect(failure).toMatchObject({ code: 1, stderr: 'chowder: The packages are not installed. Run: npm ci\n' })
  })

  test('with an old Node.js says which is needed', async () => {
    const old =
      "data:text/javascript,Object.defineProperty(process,'versions',{value:{...process.versions,node:'20.1.0'}})"
    const failure = await run(process.execPath, ['--import', old, 'src/launch.mjs'], { cwd: root }).catch(
      (error) => error,
    )
    expect(failure.code).toBe(1)
    expect(failure.stderr).toMatch(
      /^chowder: Chowder needs Node\.js 24 or newer, and this is 20\.1\.0\. Run it with npm/,
    )
  })

  test('reads .env, which the environment overrides, and does not miss it', async () => {
    const release = join(root, 'src/commands/release.ts')
    const place = join(folder, 'place')
    await mkdir(place)
    const without = await runScript([release, 'v2'], { cwd: place })
    expect(without.said).toBe('There is no release v2. There is: v1.\n')
    await writeFile(join(place, '.env'), 'PORT=one\nLOG_LEVEL=loud\n')
    const { said } = await runScript([release, 'v1'], { cwd: place, env: { PORT: '1' } })
    expect(said).toContain('LOG_LEVEL must be one of')
    expect(said).not.toContain('PORT')
  })
})

describe('the command line', () => {
  test.each([
    [['src/main.ts', 'apii'], 1, 'chowder: There is no role apii. Did you mean api?\n'],
    [['src/main.ts', '--halp'], 1, 'chowder: There is no option --halp. Did you mean --help?\n'],
    [['src/main.ts', 'migrate', 'now'], 1, 'chowder: There is no use for now: name one role, or none.\n'],
    [['src/main.ts', '--help'], 0, 'usage: npm start [-- <role>]'],
    [['src/main.ts', '--version'], 0, 'Chowder 0.'],
    [['src/commands/release.ts', '--help'], 0, 'usage: npm run release -- <release>'],
    [
      ['src/commands/release.ts', 'v1', '--channel', 'x'],
      1,
      'There is no option --channel. Did you mean --channels?\n',
    ],
    [['src/commands/release.ts', 'v1', '--driver', 'dokcer'], 1, 'There is no driver dokcer. Did you mean docker?\n'],
    [
      ['src/commands/release.ts', 'v1', '--channels', 'telegrm'],
      1,
      'There is no channel telegrm. Did you mean telegram?\n',
    ],
  ])('%j ends with %i and one sentence', async (args, code, beginning) => {
    const ended = await runScript(args)
    expect(ended.code).toBe(code)
    expect(ended.said.slice(0, beginning.length)).toBe(beginning)
    expect(ended.said).not.toContain('    at ')
  })
})

describe('DATABASE_URL that leads to no database', () => {
  let url: (changes?: { user?: string; password?: string; database?: string; search?: string }) => string
  let closeAll: (() => void)[] = []

  const failure = async (databaseUrl: string): Promise<string> => {
    const config = loadConfig({ DATABASE_URL: databaseUrl, CHOWDER_SECRET_KEY: key })
    const error = await openForOperator(config, 'test').then(
      () => new Error('it was opened'),
      (error: Error) => error,
    )
    expect(error.name).toBe('StartupError')
    expect(error.message).not.toContain('canary')
    return error.message
  }
  const listening = async (onConnection: (socket: Socket) => void): Promise<string> => {
    const server = createServer((socket) => onConnection(socket.on('error', () => {})))
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    closeAll.push(() => server.close())
    return `postgres://u:canary@127.0.0.1:${(server.address() as AddressInfo).port}/d`
  }

  beforeAll(() => {
    const { host, port, user, password, database } = new pg.Client(inject('postgres'))
    url = (changes = {}) => {
      const to = { user, password: password ?? '', database, search: '', ...changes }
      const at = `${encodeURIComponent(to.user ?? '')}:${encodeURIComponent(to.password)}@${encodeURIComponent(host)}:${port}`
      return `postgres://${at}/${to.database}${to.search}`
    }
  })
  afterAll(() => {
    for (const close of closeAll) close()
    closeAll = []
  })

  test('nobody listens, the host is unknown, the URL cannot be read', async () => {
    const port = await freePort()
    expect(await failure(`postgres://u:canary@127.0.0.1:${port}/d`)).toBe(
      `No PostgreSQL answers at 127.0.0.1:${port} (DATABASE_URL): connection refused. Start it, or correct host and port in DATABASE_URL.`,
    )
    expect(await failure(`postgres://u:canary@localhost:${port}/d`)).toContain('connection refused')
    expect(await failure('postgres://u:canary@no-such-host.invalid/d')).toMatch(
      /^The host of no-such-host\.invalid:5432 \(DATABASE_URL\) is not known: E\w+\. Correct the host in DATABASE_URL/,
    )
    expect(await failure('postgres://u:canary@127.0.0.1:five/d')).toMatch(
      /^DATABASE_URL cannot be read\. It has the form/,
    )
  })

  test('something else listens', async () => {
    expect(await failure(await listening((socket) => socket.end('HTTP/1.1 400 Bad Request\r\n\r\n')))).toMatch(
      /^What listens at 127\.0\.0\.1:\d+ \(DATABASE_URL\) ended the connection: it is not PostgreSQL/,
    )
    expect(await failure(await listening(() => {}))).toMatch(
      /^What listens at 127\.0\.0\.1:\d+ \(DATABASE_URL\) does not answer as PostgreSQL does\./,
    )
  })

  test('the password, the database or TLS is wrong', async () => {
    const { user = '' } = new pg.Client(inject('postgres'))
    expect(await failure(url({ password: 'canary' }))).toContain(
      `refused the user ${user}: the user or the password in DATABASE_URL is wrong.`,
    )
    expect(await failure(url({ database: 'nope' }))).toContain(
      'has no database nope. Create it with createdb nope, or correct the end of DATABASE_URL.',
    )
    expect(await failure(url({ search: '?sslmode=verify-full' }))).toContain(
      'has no TLS. Remove sslmode from DATABASE_URL',
    )
  })

  test('a start says it without a stack', async () => {
    const env = { DATABASE_URL: `postgres://u:canary@127.0.0.1:${await freePort()}/d`, CHOWDER_SECRET_KEY: key }
    for (const role of ['api', 'migrate']) {
      const { code, said } = await runScript(['src/main.ts', role], { env })
      expect(code).toBe(1)
      expect(said).toContain('chowder: No PostgreSQL answers at 127.0.0.1:')
      expect(said).not.toContain('    at ')
      expect(said).not.toContain('canary')
      const first = JSON.parse(said.split('\n')[0] ?? '')
      expect(first).toMatchObject({ level: 'info', role, host: hostname(), version: expect.any(String) })
      expect(first.time).toMatch(/^\d{4}-\d\d-\d\dT[\d:.]+Z$/)
    }
  })

  test('a misspelt setting is told', async () => {
    const databaseUrl = `postgres://u:canary@127.0.0.1:${await freePort()}/d`
    const env = { DATABASE_URL: databaseUrl, CHOWDER_SECRET_KEY: key, CHOWDER_DATADIR: '/canary' }
    const { said } = await runScript(['src/main.ts', 'api'], { env })
    expect(said).toContain('"CHOWDER_DATADIR is no setting of Chowder: did you mean CHOWDER_DATA_DIR?"')
    expect(said).not.toContain('canary')
  })
})

test.each([
  ['192.0.2.1', 'HOST', /^192\.0\.2\.1 is no address of this machine\. Set HOST to one of its addresses/],
  ['no-such-host.invalid', 'METRICS_PORT', /no-such-host\.invalid .*Set METRICS_PORT to an address of this machine\.$/],
])('a %s that nothing can listen on is named', async (host, hostVariable, sentence) => {
  const server = createServer()
  server.listen(0, host)
  const [error] = await once(server, 'error')
  const address = { host, port: 0, hostVariable, portVariable: 'PORT' }
  expect(explainListening(error, address)).toMatchObject({
    name: 'StartupError',
    message: expect.stringMatching(sentence),
  })
})

describe('what is away at the start', () => {
  const lines: string[] = []
  const log = pino({ level: 'info', serializers: logSerializers }, { write: (line: string) => void lines.push(line) })
  const messages = () => lines.map((line) => JSON.parse(line).msg)

  test('dockerd is told in one line, and its return in another', async () => {
    const path = join(folder, 'docker.sock')
    const docker = await createDocker({
      ...{ installation: 'i', dockerd: { host: `unix://${path}`, tls: null }, network: 'n' },
      ...{
        publishAddress: '127.0.0.1',
        egressNetwork: null,
        relayPort: null,
        relayUrl: null,
        buildNetwork: 'default',
        extraCaFile: null,
        nodeImage: 'node',
        log,
      },
      releaseSource: () => ({ root, files: [], install: '', folder: (base) => base }),
      admission: { tokenFile: '', tokenKeys: [], openPaths: [] },
    })
    const chowder = await openTestChowder({ sandboxes: docker })
    try {
      const sentence = `dockerd cannot be reached at unix://${path}: start it, or set DOCKER_HOST. Agents are created once it answers.`
      expect(await docker.outage?.(AbortSignal.timeout(10_000))).toBe(sentence)
      const worker = await chowder.startWorker()
      for (let call = 0; call < 3; call += 1) {
        await docker.observe('a', AbortSignal.timeout(1000)).catch(() => {})
      }
      await worker.stop()
      expect(messages()).toEqual([sentence])
      expect(chowder.logged.filter((line) => JSON.parse(line).level > 30)).toEqual([])
      const dockerd = await openStubDockerd(path, { containers: {}, held: 'none' })
      await docker.observe('a', AbortSignal.timeout(10_000)).catch(() => {})
      await dockerd.close()
      expect(messages().at(-1)).toBe(`dockerd answers again at unix://${path}`)

      const drain = createDrain(log)
      const startup = { role: 'all' as const, config: loadConfig({}), dataDir: '/data', log, drain }
      const greet = (env: NodeJS.ProcessEnv = {}) =>
        welcome(
          { ...startup, config: loadConfig(env) },
          { db: chowder.deps.db, url: 'http://here', regions: onlyRegion({ sandboxes: docker } as never) as never },
        )
      expect(await greet()).toContain(`DOCKER CANNOT BE REACHED at unix://${path}: start it, or set DOCKER_HOST.`)
      expect(await greet()).toContain('curl -s http://here/v1/organization/signup')
      expect(await greet({ SIGNUP: 'token' })).toContain('x-signup-token: $(npm run -s admin -- signup-token)')
      expect(await greet({ SIGNUP: 'closed' })).toContain('npm run admin -- create-org Acme')
      await chowder.signUp()
      expect(await greet()).not.toContain('signup')
    } finally {
      await chowder.close()
    }
  })

  test('Redis is told in one line, which has no stack', async () => {
    lines.length = 0
    const queue = createQueue({ kind: 'redis', url: `redis://127.0.0.1:${await freePort()}` }, log)
    await until('the line', () => lines.length > 0)
    await queue.ping(AbortSignal.timeout(1000))
    await queue.close()
    expect(lines).toHaveLength(1)
    expect(messages()[0]).toMatch(/^Redis cannot be reached: start it, or correct REDIS_URL\./)
    expect(lines[0]).toContain('ECONNREFUSED')
    expect(lines[0]).not.toContain('"stack"')
  })
})
