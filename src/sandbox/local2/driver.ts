import { spawn } from 'node:child_process'
import { chmod, chown, mkdir, open, readdir, readFile, rename, rm, stat, truncate, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { ExecResult, Inside, Observation, Progress, SandboxDriver, SandboxSpec } from '../driver.ts'
import { confinedFiles } from './confined-files.ts'
import { asUser, launch, launcherFiles } from './launcher.ts'
import { hasEnded, isAlive, killAll, type ProcessIdentity, parseIdentity, sendSignal } from './processes.ts'
import { openReservations } from './reservations.ts'

export interface LocalDriverOptions {
  dataDir: string
  /** A Node.js that every user of this host may run. */
  node: string
  /** Installs a release on this host, or finds it, and answers its folder. */
  installRelease(release: string, progress: Progress, signal: AbortSignal): Promise<string>
  /** Where an installed release is. */
  releaseFolder(release: string): string
}

export interface LocalDriver extends SandboxDriver {
  /** Stops every sandbox that runs, side by side. One that cannot be stopped does not keep the others from it. */
  stopAll(options: { graceMs: number }, signal: AbortSignal): Promise<void>
}

/** What is remembered of a sandbox, in its control folder. No secret is in it. */
interface Sandbox {
  id: string
  organizationId: string
  labels: Record<string, string>
  release: string
  /** The sandbox's own user; null when Chowder is not root and all share its user. */
  uid: number | null
  port: number
  command: readonly string[]
  env: Record<string, string>
}

const uids = { first: 20_000, last: 29_999 }
/** Below the ports that systems hand out by themselves, so that few strangers come in between. */
const ports = { first: 21_000, last: 31_999 }
const launchTimeoutMs = 10_000
const exitRecordTimeoutMs = 500
const pollMs = 20
const logMaxBytes = 5 * 1024 * 1024
const logKeptBytes = 1024 * 1024
const logReadBytes = 64 * 1024
const execMaxBytes = 1024 * 1024
/** What a sandbox gets to end by itself before it is destroyed. */
const destroyGraceMs = 2000

const isRoot = process.getuid?.() === 0
const idForm = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/

const isFree = (port: number): Promise<boolean> =>
  new Promise((resolve) => {
    const server = createServer()
    server.once('error', () => resolve(false))
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)))
  })

const readIfThere = (path: string): Promise<string | null> =>
  readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return null
    throw error
  })

/** Reads at most the last `bytes` of a file. */
async function tail(path: string, bytes: number): Promise<Buffer> {
  const file = await open(path, 'r')
  try {
    const { size } = await file.stat()
    const buffer = Buffer.alloc(Math.min(size, bytes))
    const { bytesRead } = await file.read(buffer, 0, buffer.length, size - buffer.length)
    return buffer.subarray(0, bytesRead)
  } finally {
    await file.close()
  }
}

/**
 * Sandboxes as processes of this host: one folder, one port and, as root, one user each. They outlive Chowder, and the
 * next one finds them by what their launchers wrote down.
 */
export function openLocalDriver(options: LocalDriverOptions): LocalDriver {
  const { dataDir, node, installRelease, releaseFolder } = options
  const root = join(dataDir, 'sandboxes')
  const uidReservations = openReservations(join(dataDir, 'uids'), uids.first, uids.last)
  const portReservations = openReservations(join(dataDir, 'ports'), ports.first, ports.last)

  const controlOf = (id: string): string => {
    if (!idForm.test(id)) throw new Error(`${JSON.stringify(id)} is not an instance's id`)
    return join(root, id)
  }
  const homeOf = (id: string): string => join(controlOf(id), 'home')

  const insideOf = ({ id, release, port }: Pick<Sandbox, 'id' | 'release' | 'port'>): Inside => ({
    node,
    release: releaseFolder(release),
    home: homeOf(id),
    port,
  })

  async function read(id: string): Promise<Sandbox | null> {
    const text = await readIfThere(join(controlOf(id), 'sandbox.json'))
    return text === null ? null : JSON.parse(text)
  }

  async function mustRead(id: string): Promise<Sandbox> {
    const sandbox = await read(id)
    if (!sandbox) throw new Error(`there is no sandbox ${id}`)
    return sandbox
  }

  async function remember(sandbox: Sandbox): Promise<void> {
    const path = join(controlOf(sandbox.id), 'sandbox.json')
    await writeFile(`${path}.new`, `${JSON.stringify(sandbox, null, 2)}\n`, { mode: 0o600 })
    await rename(`${path}.new`, path)
  }

  const gatewayOf = async (id: string): Promise<ProcessIdentity | null> => {
    const text = await readIfThere(join(controlOf(id), launcherFiles.process))
    const identity = text === null ? null : parseIdentity(text)
    return identity && (await isAlive(identity)) ? identity : null
  }

  /** The sandbox's processes, if its user is still its own: a number that another one has by now is not touched. */
  async function killLeftOvers({ id, uid }: Pick<Sandbox, 'id' | 'uid'>, signal: AbortSignal): Promise<void> {
    if (uid !== null && !(await uidReservations.isHeldBy(id, uid))) return
    await killAll({ uid, home: homeOf(id) }, signal)
  }

  async function rotateLog(id: string): Promise<void> {
    const path = join(controlOf(id), launcherFiles.log)
    const info = await stat(path).catch(() => null)
    if (!info || info.size <= logMaxBytes) return
    await writeFile(`${path}.1`, await tail(path, logKeptBytes), { mode: 0o600 })
    await truncate(path) // the gateway appends, so it goes on at the new end
  }

  const pickUid = async (id: string, known: number | null | undefined): Promise<number | null> => {
    if (!isRoot) return null
    if (known != null && (await uidReservations.isHeldBy(id, known))) return known
    const taken = new Set((await readFile('/etc/passwd', 'utf8')).split('\n').map((line) => line.split(':')[2]))
    return uidReservations.reserve(id, async (uid) => !taken.has(String(uid)))
  }

  const pickPort = async (id: string, known: number | undefined): Promise<number> => {
    if (known !== undefined && (await portReservations.isHeldBy(id, known)) && (await isFree(known))) return known
    return portReservations.reserve(id, isFree)
  }

  async function create(spec: SandboxSpec, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    const { id, organizationId, labels, release } = spec
    const control = controlOf(id)
    if (await gatewayOf(id)) return
    await mkdir(root, { recursive: true, mode: 0o711 })
    await mkdir(control, { recursive: true, mode: 0o711 })
    const known = await read(id)
    const uid = await pickUid(id, known?.uid)
    const port = await pickPort(id, known?.port)
    const home = homeOf(id)
    await mkdir(home, { recursive: true, mode: 0o700 })
    if (isRoot) {
      await chmod(root, 0o711) // whatever the umask was
      await chmod(control, 0o711)
      if (uid !== null) await chown(home, uid, uid)
    }
    const inside = insideOf({ id, release, port })
    await remember({
      id,
      organizationId,
      labels,
      release,
      uid,
      port,
      command: spec.command(inside),
      env: spec.env(inside),
    })
  }

  async function start(id: string, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    if (await gatewayOf(id)) return
    const sandbox = await mustRead(id)
    await killLeftOvers(sandbox, signal)
    await rotateLog(id)
    const control = controlOf(id)
    await rm(join(control, launcherFiles.exit), { force: true })
    await rm(join(control, launcherFiles.process), { force: true })
    await launch({ control, home: homeOf(id), uid: sandbox.uid, command: sandbox.command, env: sandbox.env })
    for (const deadline = performance.now() + launchTimeoutMs; performance.now() < deadline; ) {
      if ((await readIfThere(join(control, launcherFiles.process))) !== null) return
      await sleep(pollMs, undefined, { signal })
    }
    throw new Error(`the launcher of sandbox ${id} did not come up within ${launchTimeoutMs / 1000} s`)
  }

  async function stop(id: string, { graceMs }: { graceMs: number }, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    const sandbox = await read(id)
    if (!sandbox) return
    const gateway = await gatewayOf(id)
    if (gateway) {
      await sendSignal(gateway, 'SIGTERM')
      if (!(await hasEnded(gateway, graceMs, signal))) await sendSignal(gateway, 'SIGKILL')
    }
    await killLeftOvers(sandbox, signal)
    if (gateway) await waitForExitRecord(id, signal)
  }

  /** The launcher writes the exit code down right after the gateway's end; without it the code is just not known. */
  async function waitForExitRecord(id: string, signal: AbortSignal): Promise<void> {
    for (const deadline = performance.now() + exitRecordTimeoutMs; performance.now() < deadline; ) {
      if ((await readIfThere(join(controlOf(id), launcherFiles.exit))) !== null) return
      await sleep(pollMs, undefined, { signal })
    }
  }

  /** Each part may be done again after a crash; what says whose the numbers are goes last. */
  async function destroy(id: string, signal: AbortSignal): Promise<void> {
    const control = controlOf(id)
    await stop(id, { graceMs: destroyGraceMs }, signal)
    await rm(homeOf(id), { recursive: true, force: true })
    await uidReservations.release(id)
    await portReservations.release(id)
    await rm(control, { recursive: true, force: true })
  }

  async function observe(id: string, signal: AbortSignal): Promise<Observation> {
    signal.throwIfAborted()
    const sandbox = await read(id)
    if (!sandbox) return { state: 'absent', sandboxId: null, endpoint: null, inside: null }
    const seen = { sandboxId: `local-${id.slice(-12)}`, inside: insideOf(sandbox) }
    if (await gatewayOf(id)) {
      await rotateLog(id)
      return { ...seen, state: 'running', endpoint: { kind: 'tcp', host: '127.0.0.1', port: sandbox.port } }
    }
    const wasStarted = (await readIfThere(join(controlOf(id), launcherFiles.process))) !== null
    if (wasStarted) await waitForExitRecord(id, signal)
    const recorded = await readIfThere(join(controlOf(id), launcherFiles.exit))
    const exit = recorded === null ? null : Number(recorded)
    return { ...seen, state: 'stopped', endpoint: null, ...(wasStarted && { exit: { code: exit, oom: false } }) }
  }

  async function* list(signal: AbortSignal): AsyncGenerator<{ id: string; state: Observation['state'] }> {
    for (const id of await readdir(root).catch(() => [])) {
      signal.throwIfAborted()
      if (idForm.test(id)) yield { id, state: (await gatewayOf(id)) ? 'running' : 'stopped' }
    }
  }

  const exec: SandboxDriver['exec'] = async (
    id,
    argv,
    { timeoutMs, cwd, env, stdin, maxBytes = execMaxBytes },
    signal,
  ) => {
    const { uid, env: gatewayEnv } = await mustRead(id)
    const [file, ...args] = asUser(uid, argv)
    if (file === undefined) throw new Error('exec needs a program')
    const child = spawn(file, args, {
      cwd: cwd ?? homeOf(id),
      env: env ?? { PATH: gatewayEnv.PATH, HOME: gatewayEnv.HOME },
      detached: true, // a group of its own, so that all of it can be killed
      stdio: 'pipe',
    })
    return new Promise<ExecResult>((resolve, reject) => {
      const output = { stdout: [] as Buffer[], stderr: [] as Buffer[] }
      const kept = { stdout: 0, stderr: 0 }
      for (const name of ['stdout', 'stderr'] as const) {
        child[name].on('data', (chunk: Buffer) => {
          output[name].push(chunk.subarray(0, Math.max(0, maxBytes - kept[name])))
          kept[name] += chunk.length
        })
      }
      const deadline = AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)])
      const kill = () => {
        try {
          if (child.pid) process.kill(-child.pid, 'SIGKILL')
        } catch {} // it has just ended
      }
      deadline.addEventListener('abort', kill, { once: true })
      child.stdin.on('error', () => {}) // a program may end without reading it
      child.stdin.end(stdin)
      child.once('error', reject)
      child.once('close', (code) => {
        deadline.removeEventListener('abort', kill)
        if (signal.aborted) return reject(signal.reason)
        const text = (name: 'stdout' | 'stderr') => Buffer.concat(output[name]).toString()
        resolve({ exitCode: deadline.aborted ? null : code, stdout: text('stdout'), stderr: text('stderr') })
      })
    })
  }

  return {
    name: 'local',
    isolation: isRoot
      ? 'Each has a user of its own, but agents are not isolated from this machine.'
      : 'All run as your user: agents are not isolated from this machine.',
    prepare: async (release, progress, signal) => void (await installRelease(release, progress, signal)),
    create,
    start,
    stop,
    destroy,
    observe,
    list,
    exec,
    async logs(id, lines) {
      const content = await tail(join(controlOf(id), launcherFiles.log), logReadBytes).catch(() => Buffer.alloc(0))
      return content
        .toString()
        .split('\n')
        .slice(-lines - 1)
        .join('\n')
    },
    files(id) {
      const confined = read(id).then((sandbox) => {
        if (!sandbox) throw new Error(`there is no sandbox ${id}`)
        return confinedFiles(homeOf(id), sandbox.uid)
      })
      confined.catch(() => {}) // whoever calls a method is told
      return {
        list: async (...args) => (await confined).list(...args),
        stat: async (...args) => (await confined).stat(...args),
        read: async (...args) => (await confined).read(...args),
        write: async (...args) => (await confined).write(...args),
        move: async (...args) => (await confined).move(...args),
        remove: async (...args) => (await confined).remove(...args),
      }
    },
    async stopAll(grace, signal) {
      const stopping: Promise<void>[] = []
      for await (const { id, state } of list(signal)) if (state === 'running') stopping.push(stop(id, grace, signal))
      await Promise.allSettled(stopping)
    },
  }
}
