import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { access, constants, cp, mkdir, mkdtemp, rename, rm, writeFile } from 'node:fs/promises'
import { get } from 'node:http'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { until } from './until.ts'

const run = promisify(execFile)

const cache = '/var/cache/chowder-test'
const needed = [
  '/usr/sbin/dockerd',
  '/usr/bin/docker',
  '/usr/bin/mmdebstrap',
  '/usr/sbin/iptables',
  '/usr/libexec/docker/cli-plugins/docker-compose',
]
/** Rules of the agents' networks outlive their dockerd, and would hold for networks of the same name. */
const forgetRules = "iptables-save | grep -v -e '-i chowder-' | iptables-restore"
const packages = 'ca-certificates,curl,git,iptables,procps,python3'
/** Another run may hold the lock while it builds the image of a release and runs most of the crash suite. */
const waitMs = 25 * 60_000

/** A dockerd for tests, which has the image `node:24-slim`. */
export interface TestDockerd {
  /** The value for DOCKER_HOST. */
  host: string
  /** Runs Docker's command line and returns its output. */
  docker(...args: string[]): Promise<string>
  close(): Promise<void>
}

function answers(socketPath: string): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>()
  const asking = get({ socketPath, path: '/_ping', timeout: 1000 }, (response) => {
    resolve(response.statusCode === 200)
    response.destroy()
  })
  asking.on('error', () => resolve(false)).on('timeout', () => asking.destroy())
  return promise
}

/** Throws when the tests cannot start a dockerd: beside another one it would remove the other's firewall rules. */
async function mayStart(): Promise<void> {
  if (process.getuid?.() !== 0) throw new Error('the tests start a dockerd, which takes root')
  for (const program of needed)
    await access(program, constants.X_OK).catch(() => {
      throw new Error(`the tests start a dockerd, and there is no ${program}`)
    })
  if (await answers('/var/run/docker.sock'))
    throw new Error('another dockerd runs on this machine: set TEST_DOCKER_HOST to it, or end it')
}

/** The root file system of a small Debian, which is made once. */
export async function debianTar(): Promise<string> {
  const debian = join(cache, 'debian.tar')
  const isMissing = await access(debian).then(
    () => false,
    () => true,
  )
  if (isMissing) {
    await mkdir(cache, { recursive: true })
    await run('mmdebstrap', ['--variant=minbase', `--include=${packages}`, 'trixie', `${debian}.part.tar`])
    await rename(`${debian}.part.tar`, debian)
  }
  return debian
}

/**
 * Builds `node:24-slim`, which may not be reachable in a registry: a Debian with the Node.js and the npm of the tests.
 * It trusts the same certificates as the Node.js of the tests.
 */
async function makeBaseImage(docker: TestDockerd['docker']): Promise<void> {
  const { NODE_EXTRA_CA_CERTS } = process.env
  const trust = `chowder.test.trusts=${NODE_EXTRA_CA_CERTS ?? ''}`
  if ((await docker('images', '-q', '--filter', `label=${trust}`, 'node:24-slim')).trim() !== '') return
  const debian = await debianTar()
  const context = await mkdtemp(join(tmpdir(), 'chowder-base-'))
  try {
    const npm = dirname(
      dirname((await run('readlink', ['-f', (await run('which', ['npm'])).stdout.trim()])).stdout.trim()),
    )
    await cp(process.execPath, join(context, 'node'))
    await cp(npm, join(context, 'npm'), { recursive: true })
    await docker('import', debian, 'chowder-test-debian')
    await (NODE_EXTRA_CA_CERTS ? cp(NODE_EXTRA_CA_CERTS, join(context, 'ca')) : writeFile(join(context, 'ca'), ''))
    const dockerfile = `FROM chowder-test-debian
      COPY node /usr/local/bin/node
      COPY npm /usr/local/lib/node_modules/npm
      RUN ln -s ../lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm
      COPY ca /etc/ssl/chowder-test-ca.pem
      ENV NODE_EXTRA_CA_CERTS=/etc/ssl/chowder-test-ca.pem
      LABEL ${trust}`
    await writeFile(join(context, 'Dockerfile'), dockerfile)
    await docker('build', '-q', '-t', 'node:24-slim', context)
  } finally {
    await rm(context, { recursive: true })
  }
}

function commandLine(host: string): TestDockerd['docker'] {
  const env = { ...process.env, DOCKER_HOST: host, DOCKER_BUILDKIT: '0' }
  return async (...args) => (await run('/usr/bin/docker', args, { env, maxBuffer: 64 * 1024 * 1024 })).stdout
}

async function end(dockerd: ChildProcess): Promise<void> {
  if (dockerd.exitCode !== null || dockerd.signalCode !== null) return
  const exited = once(dockerd, 'exit')
  dockerd.kill('SIGTERM')
  await exited
}

/** Starts a program that holds the lock for tests with Docker. It ends with this process at the latest. */
const holding = (program: string, args: string[]) =>
  spawn('setpriv', ['--pdeathsig', 'TERM', 'flock', '--no-fork', join(cache, 'docker.lock'), program, ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
  })

/** Takes a given dockerd, of which only one test file at a time may have the lock. */
async function takeDockerd(host: string): Promise<TestDockerd> {
  const holder = holding('sh', ['-c', 'echo held; exec sleep infinity'])
  await once(holder.stdout, 'data')
  const docker = commandLine(host)
  await makeBaseImage(docker)
  return { host, docker, close: () => end(holder) }
}

/**
 * Starts a dockerd on its own socket, or takes the one of `TEST_DOCKER_HOST`. Images are kept for the next run;
 * containers, volumes and networks are removed. Only one test file at a time has it, the others wait.
 */
export async function startDockerd(): Promise<TestDockerd> {
  await mkdir(cache, { recursive: true })
  const { TEST_DOCKER_HOST } = process.env
  if (TEST_DOCKER_HOST) return takeDockerd(TEST_DOCKER_HOST)
  await mayStart()
  const folder = await mkdtemp(join(tmpdir(), 'chowder-dockerd-'))
  const socket = join(folder, 'sock')
  const dockerd = holding('/bin/sh', [
    ...['-c', `${forgetRules}; exec "$@"`, 'sh', '/usr/sbin/dockerd'],
    ...['--data-root', join(cache, 'docker'), '--exec-root', join(folder, 'exec'), '--pidfile', join(folder, 'pid')],
    ...['--host', `unix://${socket}`, '--bip', '10.89.77.1/24'],
  ])
  dockerd.stdout.resume()
  let words = ''
  dockerd.stderr.setEncoding('utf8').on('data', (text: string) => {
    words = (words + text).slice(-4000)
  })
  const close = async () => {
    await end(dockerd)
    await run('umount', [join(folder, 'exec/netns/default')]).catch(() => {}) // exists when a container has used the host's
    await rm(folder, { recursive: true, force: true })
  }
  try {
    await until(
      'dockerd to answer',
      async () => {
        if (dockerd.exitCode !== null || dockerd.signalCode !== null) throw new Error(`dockerd ended: ${words}`)
        return answers(socket)
      },
      waitMs,
    )
    const docker = commandLine(`unix://${socket}`)
    const left = (await docker('ps', '-aq')).split('\n').filter(Boolean)
    if (left.length > 0) await docker('rm', '-f', ...left)
    await docker('volume', 'prune', '-af')
    await docker('network', 'prune', '-f')
    await makeBaseImage(docker)
    return { host: `unix://${socket}`, docker, close }
  } catch (error) {
    await close()
    throw error
  }
}
