import { execFile, spawn } from 'node:child_process'
import { chmod, mkdtemp, readFile, stat, symlink } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import pTimeout from 'p-timeout'
import { Agent, fetch, type RequestInit, type Response } from 'undici'
import { inject } from 'vitest'
import { forwarderPort } from '#sandbox/container/layout.ts'
import type { Endpoint } from '#sandbox/driver.ts'
import { labels } from '#sandbox/kubernetes/objects.ts'
import { noteProcess, searchInstallation } from './canary/installation.ts'
import { compiledOnce } from './compile-cache.ts'
import { present } from './present.ts'
import { preparedRelease, releasesFolder } from './release.ts'
import { killAndRemove, processesIn } from './run-folder.ts'
import { until } from './until.ts'

const run = promisify(execFile)

const main = fileURLToPath(import.meta.resolve('#main.ts'))
const startTimeoutMs = 90_000
/** Chowder's own limit for its shutdown is shorter. */
const exitTimeoutMs = 75_000
const kubectlMs = 30_000

export interface ChowderOptions {
  dataDir: string
  role?: string
  /**
   * Added to PATH, HOME, TMPDIR, PORT=0, RELAY_PORT=0, WARM_POOL=0, LOCAL_ISOLATION and the data folder. Nothing else of the test's
   * environment is passed on.
   */
  env?: Record<string, string>
  /** Makes the command that starts it of the one that would. It has to become that one, with the same pid. */
  command?: (argv: readonly string[]) => readonly string[]
}

export interface ChowderProcess {
  /** Where its API listens; empty for a worker. */
  url: string
  pid: number
  /** Its standard output and standard error until now. */
  output(): string
  /** Sends a signal and waits for the end. Returns the exit code, or null when the signal itself ended the process. */
  kill(signal: NodeJS.Signals): Promise<number | null>
}

const { LOCAL_ISOLATION } = process.env
/** The isolation of local agents that the run of tests asks for. */
const isolation = LOCAL_ISOLATION === undefined ? {} : { LOCAL_ISOLATION }

function spawnChowder({ dataDir, role, env, command = (argv) => argv }: ChowderOptions) {
  const { PATH = '', HOME = dataDir, TMPDIR = '' } = process.env
  const [program = '', ...args] = command([process.execPath, main, ...(role === undefined ? [] : [role])])
  const child = spawn(program, args, {
    env: {
      ...compiledOnce,
      PATH,
      HOME,
      TMPDIR,
      PORT: '0',
      RELAY_PORT: '0',
      WARM_POOL: '0',
      CHOWDER_DATA_DIR: dataDir,
      ...isolation,
      ...env,
    },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let output = ''
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => {
      output += text
    })
  }
  noteProcess(dataDir, env ?? {}, () => output)
  let hasExited = false
  const exited = new Promise<number | null>((resolve, reject) => {
    child.once('error', reject)
    // Not `close`: a database that outlives Chowder may hold the pipes.
    child.once('exit', (code) => {
      hasExited = true
      resolve(code)
    })
  })
  return { child, exited, output: () => output, hasExited: () => hasExited }
}

/** The log line with the role and the address of the API; undefined until Chowder has written it. */
function runningLine(output: string): { url?: string } | undefined {
  const line = output.split('\n').find((text) => text.includes('"msg":"Chowder is running as'))
  return line === undefined ? undefined : JSON.parse(line)
}

/** Starts Chowder as an operator does, and returns when it logs that it runs. Throws with its output when it ends. */
export async function startChowder(options: ChowderOptions): Promise<ChowderProcess> {
  const { child, exited, output, hasExited } = spawnChowder(options)
  const line = await until(
    'Chowder to run',
    () => {
      if (hasExited()) throw new Error(`Chowder ended while it started:\n${output()}`)
      return runningLine(output())
    },
    startTimeoutMs,
  ).catch((error: unknown) => {
    child.kill('SIGKILL')
    throw new Error(`${error instanceof Error ? error.message : error}\n${output()}`)
  })
  return {
    url: line.url ?? '',
    pid: child.pid ?? 0,
    output,
    async kill(signal) {
      child.kill(signal)
      return pTimeout(exited, {
        milliseconds: exitTimeoutMs,
        message: `Chowder has not ended ${exitTimeoutMs} ms after ${signal}`,
      }).catch((error: unknown) => {
        child.kill('SIGKILL')
        throw error
      })
    },
  }
}

/** Runs Chowder to its end: for commands, and for starts that must fail. */
export async function runChowder(options: ChowderOptions): Promise<{ code: number | null; output: string }> {
  const { child, exited, output } = spawnChowder(options)
  const code = await pTimeout(exited, {
    milliseconds: startTimeoutMs,
    message: `the run takes over ${startTimeoutMs} ms`,
  }).finally(() => child.kill('SIGKILL'))
  return { code, output: output() }
}

/** Makes a data folder with the OpenClaw release that is installed once for all tests. */
export async function makeDataDir(): Promise<string> {
  await preparedRelease()
  // A unix socket of OpenClaw below the folder of an agent with two rooms has 107 bytes at most.
  const dataDir = await mkdtemp(join(tmpdir(), 'e2e-'))
  await chmod(dataDir, 0o711) // the database and the agents run as other users
  await symlink(releasesFolder, join(dataDir, 'releases'))
  return dataDir
}

/**
 * Kills all processes that use a data folder, and removes the folder. Throws an error when a secret stood in the clear
 * in it, or in anything else of that installation.
 */
export async function removeDataDir(dataDir: string): Promise<void> {
  try {
    await searchInstallation(dataDir)
  } finally {
    await killAndRemove(dataDir)
  }
}

export interface GatewayProcess {
  pid: number
  uid: number
  /** The instance's folder. */
  home: string
  /** The argument with which `processesIn` finds all processes of the sandbox. */
  sandbox: string
  /** Where it is reached from this host. */
  endpoint: Endpoint
  token: string
}

// Its parent and its children have the same environment; it gives itself this name soon after it began.
const gatewayCommand = /^openclaw-gateway|^[^\0]+\0(?:--import\0[^\0]+\0)*[^\0]+openclaw\.mjs\0/

/** Returns the gateways among some processes. */
export async function gatewaysAmong(among: readonly number[]): Promise<number[]> {
  const commands = await Promise.all(among.map((pid) => readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')))
  return among.filter((_pid, at) => gatewayCommand.test(present(commands[at])))
}

/** Finds the process of an instance's gateway as `ps` would, and reads its configuration; null when there is none. */
export async function findGateway(instanceId: string): Promise<GatewayProcess | null> {
  const dockerHost = inject('agentDockerHost') ?? null
  const cluster = inject('agentCluster') ?? null
  let container: AgentContainer | null = null
  if (dockerHost !== null) container = await findContainer(dockerHost, instanceId)
  else if (cluster !== null) container = await findPod(cluster, instanceId)
  const isOnThisHost = dockerHost === null && cluster === null
  if (!isOnThisHost && !container) return null
  for (const pid of await processesIn(container?.id ?? instanceId)) {
    const of = (name: string) => readFile(`/proc/${pid}/${name}`, 'utf8').catch(() => '')
    const configPath = /OPENCLAW_CONFIG_PATH=([^\0]+)/.exec(await of('environ'))?.[1]
    const isMeant = container ? (await of('cgroup')).includes(container.id) : configPath?.includes(instanceId)
    if (!configPath || !isMeant || !gatewayCommand.test(await of('cmdline'))) continue
    const root = container ? `/proc/${pid}/root` : ''
    const read = (path: string) => readFile(join(root + configPath, '../..', path), 'utf8').then(JSON.parse)
    const seen = await Promise.all([
      read('state/openclaw.json'),
      read('state/secrets.json'),
      stat(`/proc/${pid}`),
    ]).catch(() => null)
    if (!seen) continue // the process has just ended
    const [{ gateway }, { gatewayToken }, { uid }] = seen
    const home = container ? join(container.volume, 'home') : join(configPath, '../..')
    const record = container ? '{}' : await readFile(join(home, '../sandbox.json'), 'utf8')
    const onThisHost: Endpoint = JSON.parse(record).isJailed
      ? { kind: 'unix', path: join(home, '../jail/gateway') }
      : { kind: 'tcp', host: '127.0.0.1', port: gateway.port }
    const endpoint = container?.endpoint ?? onThisHost
    return { pid, uid, home, sandbox: container?.id ?? home, endpoint, token: gatewayToken }
  }
  return null
}

/** Sends a request to a gateway from this host. */
export function askGateway({ endpoint }: GatewayProcess, path: string, init: RequestInit = {}): Promise<Response> {
  if (endpoint.kind === 'tcp') return fetch(`http://${endpoint.host}:${endpoint.port}${path}`, init)
  const dispatcher = new Agent({ connect: { socketPath: endpoint.path } })
  return fetch(`http://127.0.0.1${path}`, { ...init, dispatcher })
}

/** Where an agent is on this host: a word that the control groups of its processes have, and the folder of its volume. */
interface AgentContainer {
  id: string
  volume: string
  endpoint: Endpoint
}

async function findContainer(dockerHost: string, instanceId: string): Promise<AgentContainer | null> {
  const inspecting = run('docker', ['--host', dockerHost, 'container', 'inspect', `chowder-${instanceId}`])
  const found = await inspecting.then(({ stdout }) => JSON.parse(stdout)[0]).catch(() => null) // there is none
  if (!found?.State.Running) return null
  const [published] = Object.values<{ HostPort: string }[] | null>(found.NetworkSettings.Ports).flat()
  const endpoint: Endpoint = { kind: 'tcp', host: '127.0.0.1', port: Number(published?.HostPort) }
  return { id: found.Id, volume: found.Mounts[0].Source, endpoint }
}

async function findPod(clusterFolder: string, instanceId: string): Promise<AgentContainer | null> {
  const [pod] = await objectsOfAgent(clusterFolder, 'pods', instanceId)
  const volume = await volumeOfAgent(clusterFolder, instanceId)
  if (!pod?.status.podIP || volume === null) return null
  return {
    id: `pod${pod.metadata.uid}`,
    volume,
    endpoint: { kind: 'tcp', host: pod.status.podIP, port: forwarderPort },
  }
}

interface ClusterObject {
  metadata: { name: string; uid: string }
  status: { podIP?: string }
}

/** The objects of the sandbox of an agent in a cluster, by kubectl, as its administrator. */
export async function objectsOfAgent(
  clusterFolder: string,
  kind: string,
  instanceId: string,
): Promise<ClusterObject[]> {
  const selector = `${labels.instance}=${instanceId},${labels.role}=sandbox`
  const asked = ['--kubeconfig', join(clusterFolder, 'admin.conf'), 'get', kind, '-A', '-l', selector, '-o', 'json']
  return JSON.parse((await run('kubectl', asked, { timeout: kubectlMs })).stdout).items
}

/** The folder of this host with the volume of an agent in a cluster; null when it has none. */
export async function volumeOfAgent(clusterFolder: string, instanceId: string): Promise<string | null> {
  const [claim] = await objectsOfAgent(clusterFolder, 'persistentvolumeclaims', instanceId)
  return claim ? join(clusterFolder, 'volumes', claim.metadata.uid) : null
}
