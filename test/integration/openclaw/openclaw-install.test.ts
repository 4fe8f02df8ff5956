import { execFile } from 'node:child_process'
import { chmod, mkdir, mkdtemp, readdir, readFile, realpath, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, delimiter, join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { promisify } from 'node:util'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import { compileCacheFolder, gatewayEnv } from '#openclaw/inside/launch.ts'
import { channelPluginFolder } from '#openclaw/release/channel-plugins.ts'
import { linkCompileCache } from '#openclaw/release/compile-cache.ts'
import { installChannelPlugin, installRelease } from '#openclaw/release/install.ts'
import { openclawVersion, releaseFolder } from '#openclaw/releases.ts'
import { nodeBinary } from '#platform/data-folder.ts'
import { until } from '../../support/until.ts'

const version = openclawVersion('v1')
/** A user that this machine does not know. */
const uid = 29_998
/**
 * A gateway that is ready at once, answers everything and has a state database; it ends cleanly, as Node.js writes its
 * compile cache only then.
 */
const gateway = `
import { mkdirSync } from "node:fs"
import { createServer } from "node:http"
import { DatabaseSync } from "node:sqlite"
import { answer } from "./answer.mjs"
const folder = process.env.OPENCLAW_STATE_DIR + "/state"
if (process.argv.includes("--port")) {
  mkdirSync(folder)
  new DatabaseSync(folder + "/openclaw.sqlite").exec("CREATE TABLE schema_meta AS SELECT 1 AS number; CREATE TABLE device_identities AS SELECT 2 AS number")
}
if (process.argv.includes("--port")) createServer(answer).listen(process.argv[process.argv.indexOf("--port") + 1])
process.on("SIGTERM", () => process.exit())`
const putOpenclaw = (program: string) => `
mkdir -p "$prefix/node_modules/openclaw"
echo '{"version":"${version}"}' > "$prefix/node_modules/openclaw/package.json"
echo 'export const answer = (_request, response) => response.end("{}")' > "$prefix/node_modules/openclaw/answer.mjs"
echo '${program}' > "$prefix/node_modules/openclaw/openclaw.mjs"`
const good = putOpenclaw(gateway)

let root: string
let dataDir: string
let folder: string
const lines: string[] = []

/** Puts a program called npm first on PATH: it notes its arguments, knows its folder as $prefix, and does as told. */
async function npmDoes(script: string): Promise<void> {
  const head = '#!/bin/sh\necho "$$ $*" >> "$0.calls"\nwhile [ "$1" != --prefix ]; do shift; done\nprefix=$2\n'
  await writeFile(join(root, 'bin/npm'), head + script)
  await chmod(join(root, 'bin/npm'), 0o755)
}
const npmCalls = async () =>
  (await readFile(join(root, 'bin/npm.calls'), 'utf8').catch(() => '')).split('\n').filter(Boolean)

const install = (signal: AbortSignal = AbortSignal.timeout(20_000)) =>
  installRelease({ dataDir, release: 'v1', progress: (line) => lines.push(line), signal })

/** The entries of the releases' folder besides the lock. */
const leftovers = async () => (await readdir(join(dataDir, 'releases'))).filter((name) => !name.includes('.lock'))

/** The entries of the release's compile cache besides the lock. */
const cached = async () =>
  (await readdir(compileCacheFolder(folder)).catch(() => [])).filter((name) => !name.endsWith('.lock')).sort()

beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'openclaw-install-'))
  dataDir = join(root, 'data')
  folder = releaseFolder(dataDir, 'v1')
  lines.length = 0
  await mkdir(join(root, 'bin'))
  vi.stubEnv('PATH', `${join(root, 'bin')}${delimiter}${process.env.PATH}`)
})

afterEach(async () => {
  vi.unstubAllEnvs()
  await rm(root, { recursive: true })
})

test('the release is installed from its lock without scripts, and is read-only', async () => {
  await npmDoes(good)
  expect(await install()).toBe(folder)
  expect(await npmCalls()).toEqual([expect.stringMatching(/ ci --ignore-scripts --omit=dev /)])
  for (const path of ['', 'package-lock.json', 'node_modules/openclaw/openclaw.mjs']) {
    const { mode } = await stat(join(folder, path))
    expect(mode & 0o222).toBe(0)
    expect(mode & 0o444).toBe(0o444)
  }
  expect(lines[0]).toMatch(/^installing OpenClaw [\d.]+: 0 of \d+ packages$/)
  expect(lines).toContain(`OpenClaw ${version} is installed`)
})

test('its compile cache is made once, readable by all users and read-only', async () => {
  await npmDoes(good)
  await install()
  expect(lines.slice(-2)).toEqual([
    `preparing the compile cache of OpenClaw ${version}`,
    `the compile cache of OpenClaw ${version} is made`,
  ])
  const [cache = '', own] = await cached()
  expect(own).toBe(`${cache}-${process.getuid?.()}`)
  const files = await readdir(join(compileCacheFolder(folder), cache))
  expect(files.length).toBeGreaterThan(0)
  for (const name of ['', ...files]) {
    const { mode } = await stat(join(compileCacheFolder(folder), cache, name))
    expect(mode & 0o222).toBe(0)
    expect(mode & 0o444).toBe(0o444)
  }
  const known = lines.length
  await install()
  expect(lines).toHaveLength(known)
})

test('a release that was installed without a compile cache gets one', async () => {
  await npmDoes(good)
  await install()
  await promisify(execFile)('rm', ['-rf', compileCacheFolder(folder)])
  await install()
  expect(await cached()).toHaveLength(2)
  expect(await npmCalls()).toHaveLength(1)
})

test('with the compile cache is the first state of new agents, without what identifies an agent', async () => {
  await npmDoes(good)
  await install()
  const [cache = ''] = await cached()
  using database = new DatabaseSync(join(compileCacheFolder(folder), cache, 'first-state.sqlite'), { readOnly: true })
  expect(database.prepare('SELECT number FROM schema_meta').all()).toMatchObject([{ number: 1 }])
  expect(database.prepare('SELECT number FROM device_identities').all()).toEqual([])
})

test('when a gateway leaves no first state, its compile cache is made anyway', async () => {
  await npmDoes(putOpenclaw(gateway.replace('mkdirSync(folder)', 'process.on("exit", () => rmSync(folder, { recursive: true })); mkdirSync(folder)').replace('{ mkdirSync }', '{ mkdirSync, rmSync }'))) // biome-ignore format: short
  await install()
  expect(lines.at(-2)).toMatch(/^OpenClaw .* left no first state: .*; new agents start more slowly$/)
  expect(await cached()).toHaveLength(2)
})

test.runIf(process.getuid?.() === 0)(
  'Node.js of another user reads the compile cache, cannot write it, and prints nothing',
  async () => {
    await npmDoes(good)
    await install()
    await chmod(root, 0o755)
    for (const _ of ['first start', 'second start']) await linkCompileCache(folder, uid)
    const before = await cached()
    const env = gatewayEnv({ node: await nodeBinary(dataDir), release: folder, home: root, port: 1 })
    const program = join(root, 'program.mjs')
    await writeFile(program, 'import { getCompileCacheDir } from "node:module"; console.log(getCompileCacheDir())')
    const nodeRuns = async (file: string, more: Record<string, string> = {}) => {
      const argv = [`--reuid=${uid}`, `--regid=${uid}`, '--clear-groups', '--', await nodeBinary(dataDir), file]
      return promisify(execFile)('setpriv', argv, { env: { ...env, ...more }, cwd: '/' })
    }
    const openclaw = join(folder, 'node_modules/openclaw/openclaw.mjs')
    const { stderr } = await nodeRuns(openclaw, { NODE_DEBUG_NATIVE: 'COMPILE_CACHE' })
    expect(stderr).toMatch(/cache for ESM .*answer\.mjs was accepted/)
    const output = { stdout: `${join(compileCacheFolder(folder), before[0] ?? '')}-${uid}\n`, stderr: '' }
    expect(await nodeRuns(program)).toEqual(output)
    expect(await cached()).toEqual(before)
  },
)

test('when the compile cache cannot be made, the release is installed, and no second attempt is made', async () => {
  await npmDoes(putOpenclaw('if (process.argv.includes("--port")) throw new Error("no gateway today")'))
  expect(await install()).toBe(folder)
  expect(lines.at(-1)).toMatch(
    /^the compile cache of OpenClaw .* could not be made: .*no gateway today.*; agents start without it$/s,
  )
  expect(await cached()).toEqual([])
  const known = lines.length
  await install()
  expect(lines).toHaveLength(known)
})

test('an installed release is not installed again', async () => {
  await npmDoes(good)
  await install()
  await install()
  expect(await npmCalls()).toHaveLength(1)
})

test('of concurrent installs one runs and the others wait', async () => {
  await npmDoes(`until [ -e "$0.go" ]; do sleep 0.05; done${good}`)
  const installing = Promise.all([install(), install(), install()])
  await until('two to wait', () => lines.filter((line) => line.includes('waiting for it')).length === 2)
  await writeFile(join(root, 'bin/npm.go'), '')
  expect(await installing).toEqual([folder, folder, folder])
  expect(await npmCalls()).toHaveLength(1)
})

test('the folder of a killed install is removed and never used', async () => {
  await npmDoes(good)
  const left = join(dataDir, 'releases', `${folder.split('/').at(-1)}.installing-1-1`)
  await mkdir(join(left, 'node_modules/half'), { recursive: true })
  await chmod(left, 0o555)
  await install()
  expect(await leftovers()).toEqual([folder, compileCacheFolder(folder)].map((path) => basename(path)))
  expect(await readdir(join(folder, 'node_modules'))).toEqual(['openclaw'])
})

test.each([
  ['a package is refused', 'echo "npm error code E404" >&2; exit 1', ': the package registry does not give a package.'],
  [
    'the registry is away',
    'echo "npm error code ECONNREFUSED" >&2; echo "npm error FetchError: request to https://registry.npmjs.org/a failed" >&2; exit 1',
    ': the package registry cannot be reached.',
  ],
  ['its name is unknown', 'echo "npm error code EAI_AGAIN" >&2; exit 1', ': the package registry cannot be reached.'],
  [
    'a package was changed',
    'echo "npm error code EINTEGRITY" >&2; exit 1',
    ': a package is not the one that was locked.',
  ],
  [
    'the disk is full',
    'mkdir -p "$prefix/node_modules/a"; echo "npm error code ENOSPC" >&2; exit 228',
    ': the disk is full.',
  ],
  [
    'npm cannot write a file and goes on',
    `echo "npm warn tar TAR_ENTRY_ERROR ENOSPC: no space left on device, write" >&2${good}`,
    ': the disk is full.',
  ],
  ['npm ends without a word', 'exit 3', '.', 'npm ended with code 3'],
  ['another version came', good.replaceAll(version, '1.0.0'), '.', 'npm did not install openclaw'],
  ['nothing came', 'exit 0', '.', 'ENOENT'],
])('when %s, the error names the class of the cause and no folder is left', async (_when, script, why, output = '') => {
  await npmDoes(script)
  const failure = await install().catch((error: unknown) => error)
  expect(failure).toMatchObject({
    name: 'InstallError',
    message: `OpenClaw ${version} could not be installed${why}`,
    output: expect.stringContaining(output),
    isExplained: output === '',
  })
  expect(await leftovers()).toEqual([])
  await npmDoes(good)
  expect(await install()).toBe(folder)
})

test('progress is told when it changes', async () => {
  await npmDoes(`sleep 2.5${good}`)
  await install()
  const counts = lines.filter((line) => line.endsWith(' packages'))
  expect(counts).toEqual([...new Set(counts)])
})

test('an abort ends npm and its children, and no folder is left', async () => {
  await npmDoes('mkdir -p "$prefix/node_modules/a"; sleep 60 & echo $! >> "$0.calls"; wait')
  const stop = new AbortController()
  const installing = expect(install(stop.signal)).rejects.toThrow('enough')
  const [npm, sleeper] = await until('npm and its child', async () => {
    const pids = (await npmCalls()).map((line) => Number(line.split(' ')[0]))
    return pids.length === 2 ? pids : null
  })
  stop.abort(new Error('enough'))
  await installing
  expect(await leftovers()).toEqual([])
  for (const pid of [npm, sleeper]) await until(`the end of ${pid}`, () => hasEnded(Number(pid)))
})

/** A zombie has ended too: whoever inherited it just did not look yet. */
const hasEnded = (pid: number) =>
  readFile(`/proc/${pid}/stat`, 'utf8').then(
    (line) => line.split(') ')[1]?.startsWith('Z') ?? true,
    () => true,
  )

test('a channel’s plugin is installed beside its release, with a link to it, and is read-only', async () => {
  await npmDoes(good)
  await install()
  await npmDoes(
    'cd "$prefix"; mkdir -p node_modules/@openclaw/discord; echo > node_modules/@openclaw/discord/openclaw.plugin.json',
  )
  const options = { dataDir, release: 'v1', progress: () => {}, signal: AbortSignal.timeout(20_000) }
  const plugin = await installChannelPlugin({ ...options, channel: 'discord' })
  expect(plugin).toBe(channelPluginFolder(folder, 'v1', 'discord'))
  expect((await npmCalls()).at(-1)).toMatch(/ ci --ignore-scripts .*--omit=peer --legacy-peer-deps /)
  const paths = join(plugin, 'node_modules/@openclaw/discord')
  expect(await realpath(join(paths, 'node_modules/openclaw'))).toBe(
    await realpath(join(folder, 'node_modules/openclaw')),
  )
  expect((await stat(join(paths, 'openclaw.plugin.json'))).mode & 0o222).toBe(0)
  await npmDoes('exit 0')
  await expect(installChannelPlugin({ ...options, channel: 'slack' })).rejects.toMatchObject({
    output: expect.stringContaining('npm installed no plugin'),
  })
})
