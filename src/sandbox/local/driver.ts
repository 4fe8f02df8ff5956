import { execFile } from 'node:child_process'
import { chown, mkdir, readdir } from 'node:fs/promises'
import { join, relative, resolve } from 'node:path'
import { promisify } from 'node:util'
import type { Logger } from '#platform/log.ts'
import { StartupError } from '#platform/startup-error.ts'
import {
  type Observation,
  type Progress,
  SandboxAbsentError,
  SandboxCapacityError,
  type SandboxDriver,
  type SandboxPaths,
  type SandboxSpec,
} from '#sandbox/driver.ts'
import { filesIn } from '#sandbox/home/files.ts'
import { isCode, openFolderAt } from '#sandbox/home/open-folder.ts'
import { pause } from '#sandbox/pause.ts'
import { execBeside } from './exec.ts'
import { isSandboxId, type SandboxFolder, type SandboxRecord, sandboxFolder } from './folder.ts'
import { launchGateway } from './launch.ts'
import { lastLines, rotateLog } from './log-file.ts'
import { endProcesses, isAlive, type Owner, processesOf, signalProcess } from './processes.ts'
import { createReservations, isPortFree, type Range, unusedUids } from './reservations.ts'

export interface LocalDriverOptions {
  dataDir: string
  /** A Node.js binary that any user of the machine may run. */
  node: string
  /** Makes a release available on this host, readable by any user. */
  installRelease(release: string, progress: Progress, signal: AbortSignal): Promise<unknown>
  /** The same for a channel's plugin, which is put beside the release. */
  installChannelPlugin(release: string, channel: string, progress: Progress, signal: AbortSignal): Promise<unknown>
  /** Where an installed release is: the folder that holds its `node_modules`. */
  releaseFolder(release: string): string
  /** Lets a user of this machine read the compile cache of the release in that folder, if there is one. Does not fail. */
  linkCompileCache(releaseFolder: string, uid: number): Promise<void>
  ports?: Range
  log?: Logger
}

/** Sandboxes that are processes of this machine. */
export interface LocalDriver extends SandboxDriver {
  /** Stops every sandbox that runs, side by side. Throws what failed once all were tried. */
  stopAll(options: { graceMs: number }, signal: AbortSignal): Promise<void>
  /** Processes that run in sandboxes that do not. What is being started or stopped at that moment may be among them. */
  orphans(signal: AbortSignal): Promise<{ what: string; pids: number[] }[]>
}

const isRoot = process.getuid?.() === 0
const uids: Range = { first: 20_000, last: 29_999 }
const defaultPorts: Range = { first: 21_000, last: 29_999 }
const pollMs = 50
const leftOverGraceMs = 5000
const destroyGraceMs = 2000
const portReleaseMs = 1000
/** The launcher needs a moment to record how the gateway ended. */
const exitRecordMs = 2000

const isolation = isRoot
  ? 'Each agent runs as a user of its own, but agents are not isolated from this machine.'
  : 'Agents run as the user that runs Chowder: agents are not isolated from this machine, nor from each other.'

/** Whether a port is free, or is so soon: the kernel takes a moment to close that of a gateway that was killed. */
async function becomesFree(port: number, signal: AbortSignal): Promise<boolean> {
  const deadline = performance.now() + portReleaseMs
  while (!(await isPortFree(port))) {
    if (performance.now() > deadline) return false
    await pause(pollMs, signal)
  }
  return true
}

const run = promisify(execFile)

/**
 * Opens the sandboxes of a data folder. They live on when this process ends, and the next driver opened on the folder
 * finds them. As root each has a user of its own; otherwise all run as the control plane's. Throws where there is no
 * Linux to tell about processes.
 */
export function createLocalDriver(options: LocalDriverOptions): LocalDriver {
  if (process.platform !== 'linux') throw new StartupError('SANDBOX_DRIVER=local runs on Linux only.')
  const { node, installRelease, installChannelPlugin, releaseFolder, linkCompileCache, log } = options
  const dataDir = resolve(options.dataDir)
  const parent = join(dataDir, 'sandboxes')
  const userIds = createReservations(join(dataDir, 'uids'), uids, 'user id')
  const ports = createReservations(join(dataDir, 'ports'), options.ports ?? defaultPorts, 'port')
  const folderOf = (id: string) => sandboxFolder(parent, id)

  async function recordOf(folder: SandboxFolder): Promise<SandboxRecord> {
    const record = await folder.readRecord()
    if (!record) throw new SandboxAbsentError(`there is no sandbox ${folder.id}`)
    // Else what ran as an ordinary user would run as root now.
    if (isRoot && record.uid === null) throw new Error(`sandbox ${folder.id} was not made by root and cannot run as it`)
    return record
  }

  /** What is on record as running, whether or not its start was seen by this process. */
  async function liveGateway(folder: SandboxFolder, uid: number | null) {
    const gateway = await folder.gateway()
    return gateway && (await isAlive(gateway, uid)) ? gateway : null
  }

  async function launcherEnded(folder: SandboxFolder, signal: AbortSignal): Promise<void> {
    const supervisor = await folder.supervisor()
    const deadline = performance.now() + exitRecordMs
    while (supervisor && performance.now() < deadline && (await isAlive(supervisor, null))) {
      await pause(pollMs / 5, signal)
    }
  }

  const homeOf = ({ home, uploads }: SandboxFolder, { uid }: SandboxRecord) => ({ path: home, uid, uploads })

  const ownerOf = async (folder: SandboxFolder, uid: number | null): Promise<Owner> => ({
    uid,
    home: folder.home,
    gateway: await folder.gateway(),
  })

  const describe = (spec: SandboxSpec, folder: SandboxFolder, uid: number | null, port: number): SandboxRecord => {
    const { id, organizationId, release, labels } = spec
    const inside: SandboxPaths = { node, release: releaseFolder(release), home: folder.home, port }
    return { id, organizationId, release, labels, uid, inside, command: spec.command(inside), env: spec.env(inside) }
  }

  /** A user and a port of its own, those that a killed create has reserved already if there are any. */
  async function makeRecord(spec: SandboxSpec, folder: SandboxFolder): Promise<SandboxRecord> {
    await folder.make()
    const [reservedUid] = await userIds.heldBy(spec.id)
    const [reservedPort] = await ports.heldBy(spec.id)
    const uid = isRoot ? (reservedUid ?? (await userIds.take(spec.id, await unusedUids()))) : null
    const port = reservedPort ?? (await ports.take(spec.id, isPortFree))
    const record = describe(spec, folder, uid, port)
    if (await folder.publishRecord(record)) return record
    const winner = await recordOf(folder)
    if (uid !== null && winner.uid !== uid) await userIds.free(uid)
    if (winner.inside.port !== port) await ports.free(port)
    return winner
  }

  /** Brings a stopped sandbox's record up to date, and gives it another port if a stranger has taken its own. */
  async function renewRecord(
    spec: SandboxSpec,
    folder: SandboxFolder,
    old: SandboxRecord,
    signal: AbortSignal,
  ): Promise<void> {
    const { port } = old.inside
    const isFree = await becomesFree(port, signal)
    const record = describe(spec, folder, old.uid, isFree ? port : await ports.take(spec.id, isPortFree))
    if (JSON.stringify(record) !== JSON.stringify(old)) await folder.replaceRecord(record)
    if (!isFree) await ports.free(port)
  }

  async function create(spec: SandboxSpec, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    const folder = folderOf(spec.id)
    const old = (await folder.readRecord()) ? await recordOf(folder) : null
    const { uid } = old ?? (await makeRecord(spec, folder))
    await mkdir(folder.home, { recursive: true, mode: 0o700 })
    if (uid !== null) await chown(folder.home, uid, uid)
    if (!old || (await liveGateway(folder, uid))) return
    await folder.removeStaleUploads()
    await renewRecord(spec, folder, old, signal)
  }

  async function stop(id: string, { graceMs }: { graceMs: number }, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    const folder = folderOf(id)
    if (!(await folder.exists())) return
    // Half-made and half-removed ones have no record any more, but their user.
    const record = await folder.readRecord()
    const uid = record ? record.uid : ((await userIds.heldBy(id))[0] ?? null)
    if (isRoot && uid === null) return // nothing of it can run
    const deadline = performance.now() + graceMs
    for (let gateway = await liveGateway(folder, uid), asked = false; gateway && performance.now() < deadline; ) {
      if (!asked) signalProcess(gateway.pid, 'SIGTERM')
      asked = true
      await pause(pollMs, signal)
      gateway = await liveGateway(folder, uid)
    }
    await endProcesses(await ownerOf(folder, uid), { graceMs: 0 }, signal)
    await launcherEnded(folder, signal)
  }

  async function observe(id: string, signal: AbortSignal): Promise<Observation> {
    signal.throwIfAborted()
    const folder = folderOf(id)
    const record = await folder.readRecord()
    if (!record) return { state: 'absent', sandboxId: null, endpoint: null, paths: null }
    const { inside, uid } = record
    const seen = { sandboxId: `local-${id.slice(0, 8)}`, paths: inside }
    await rotateLog(folder.log)
    if (await liveGateway(folder, uid)) {
      return { ...seen, state: 'running', endpoint: { kind: 'tcp', host: '127.0.0.1', port: inside.port } }
    }
    const stopped = { ...seen, state: 'stopped' as const, endpoint: null }
    if (!(await folder.gateway())) return stopped
    if ((await folder.exitCode()) === null) await launcherEnded(folder, signal)
    return { ...stopped, exit: { code: await folder.exitCode(), oom: false } }
  }

  async function* list(signal: AbortSignal) {
    const ids = await readdir(parent).catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return []
      throw error
    })
    for (const id of ids.filter(isSandboxId)) {
      const { state } = await observe(id, signal)
      // A folder without a record is half-made or half-removed: it must not be forgotten.
      if (state !== 'absent') yield { id, state }
      else if (await folderOf(id).exists()) yield { id, state: 'stopped' as const }
    }
  }

  return {
    name: 'local',
    isolation,
    list,
    observe,
    stop,
    async prepare(release, progress, signal) {
      await installRelease(release, progress, signal)
    },
    async prepareChannel(release, channel, progress, signal) {
      await installChannelPlugin(release, channel, progress, signal)
    },
    create: (spec, signal) =>
      create(spec, signal).catch((error: unknown) => {
        if (!isCode(error, 'ENOSPC', 'EDQUOT')) throw error
        throw new SandboxCapacityError('the disk has no room left for this sandbox', { cause: error })
      }),
    async start(id, signal) {
      signal.throwIfAborted()
      const folder = folderOf(id)
      const record = await recordOf(folder)
      if (await liveGateway(folder, record.uid)) return
      // One gateway would refuse the folder of another, and the agent's own programs may still write in it.
      const owner = await ownerOf(folder, record.uid)
      const leftOver = await processesOf(owner)
      if (await liveGateway(folder, record.uid)) return // on record before it could be found: another start's
      if (leftOver.length > 0) {
        await endProcesses(owner, { graceMs: leftOverGraceMs }, signal)
        log?.warn({ instanceId: id, processes: leftOver.length }, 'ended what an earlier gateway left running')
      }
      await launcherEnded(folder, signal)
      const isFree = await becomesFree(record.inside.port, signal)
      if (await liveGateway(folder, record.uid)) return // another start's launcher was about to put it on record
      if (!isFree) throw new Error(`port ${record.inside.port} is taken by a stranger`)
      await rotateLog(folder.log)
      if (record.uid !== null) await linkCompileCache(record.inside.release, record.uid)
      await launchGateway(folder, record, signal)
    },
    async destroy(id, signal) {
      signal.throwIfAborted()
      await stop(id, { graceMs: destroyGraceMs }, signal)
      await run('/bin/rm', ['-rf', '--', folderOf(id).path], { signal }).catch((error) => {
        signal.throwIfAborted()
        throw error
      })
      await userIds.freeAllOf(id)
      await ports.freeAllOf(id)
    },
    async exec(id, argv, execOptions, signal) {
      signal.throwIfAborted()
      const folder = folderOf(id)
      const record = await recordOf(folder)
      const cwd = relative(folder.home, resolve(folder.home, execOptions.cwd ?? ''))
      await using workingFolder = await openFolderAt(homeOf(folder, record), cwd)
      // Awaited, so that the folder is closed after it: a failure meanwhile would have no handler.
      return await execBeside(record, workingFolder, argv, execOptions, signal)
    },
    logs: (id, lines) => lastLines(folderOf(id).log, lines),
    files(id) {
      const folder = folderOf(id)
      return filesIn(async () => homeOf(folder, await recordOf(folder)))
    },
    async orphans(signal) {
      const found: { what: string; pids: number[] }[] = []
      for await (const { id, state } of list(signal)) {
        const folder = folderOf(id)
        const record = await folder.readRecord()
        if (!record) continue
        const pids = state === 'running' ? [] : await processesOf(await ownerOf(folder, record.uid))
        if (pids.length > 0) found.push({ what: `The sandbox ${id} is stopped`, pids })
      }
      return found
    },
    async stopAll(stopOptions, signal) {
      const stopping: Promise<void>[] = []
      for await (const { id, state } of list(signal))
        if (state === 'running') stopping.push(stop(id, stopOptions, signal))
      const failed = (await Promise.allSettled(stopping)).filter((result) => result.status === 'rejected')
      if (failed.length > 0)
        throw new AggregateError(
          failed.map(({ reason }) => reason),
          'some agents could not be stopped',
        )
    },
  }
}
