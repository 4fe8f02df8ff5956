import { execFile } from 'node:child_process'
import { mkdir, readdir, stat } from 'node:fs/promises'
import { join, relative, resolve } from 'node:path'
import { promisify } from 'node:util'
import pMap from 'p-map'
import { StartupError } from '#errors/startup-error.ts'
import { chownTree } from '#platform/chown-tree.ts'
import type { Logger } from '#platform/log.ts'
import { poll } from '#platform/poll.ts'
import {
  noKeptLimits,
  type Observation,
  type Progress,
  SandboxCapacityError,
  type SandboxDriver,
  type SandboxSpec,
} from '#sandbox/driver.ts'
import { filesIn } from '#sandbox/home/files.ts'
import { isCode, openFolderAt } from '#sandbox/home/open-folder.ts'
import { readLog, rotateLog } from '#sandbox/log-file.ts'
import { readActivity } from './activity.ts'
import {
  freeSwap,
  freezeGroup,
  isFrozen,
  ranOutOfMemory,
  removeGroup,
  thawGroup,
  waitUntilEmpty,
} from './control-group.ts'
import { createEnds } from './ends.ts'
import { execBeside, execInJail } from './exec.ts'
import { isSandboxId, type SandboxFolder, type SandboxRecord, sandboxFolder } from './folder.ts'
import { launcherEnded, liveGateway, ownerOf } from './gateway.ts'
import { hasPython, type Jail } from './jail.ts'
import { launchGateway } from './launch.ts'
import { changeLimits, lazyControlGroups, makeGroup } from './limits.ts'
import { createMeasure, diskUseOf, memoryUseOf } from './measure.ts'
import { endProcesses, processesOf, signalProcess } from './processes.ts'
import { createRecords } from './records.ts'
import { becomesFree, type Range } from './reservations.ts'
import { type ServeJail, serveWayOut, waysOutFolder } from './way-out.ts'

export interface LocalDriverOptions {
  dataDir: string
  /** The folder of the sandboxes' users and ports; by default the data folder. Drivers on a host share it. */
  numbersDir?: string
  /** A Node.js binary that every user of the machine may run. */
  node: string
  /** Makes a release available on this host, readable by every user. */
  installRelease(release: string, progress: Progress, signal: AbortSignal): Promise<unknown>
  /** Installs the plugin of a channel beside the release, in the same way. */
  installChannelPlugin(release: string, channel: string, progress: Progress, signal: AbortSignal): Promise<unknown>
  /** The folder of an installed release, with its `node_modules`. */
  releaseFolder(release: string): string
  /**
   * Makes the compile cache of the release in that folder readable for a user of this machine, if there is one. Does
   * not fail.
   */
  linkCompileCache(releaseFolder: string, uid: number): Promise<void>
  ports?: Range
  jail: Jail
  /** The reason why sandboxes that are created or started from now on have no jail; null if they have one. */
  noJail: string | null
  /** Whether the operator has accepted that agents of several organizations run in this way as one user. */
  acceptsOneUser: boolean
  log?: Logger
}

/** A driver whose sandboxes are processes of this machine. */
export interface LocalDriver extends SandboxDriver {
  /**
   * Serves a service to jailed sandboxes, which reach it at its port of 127.0.0.1. `serve` gets the id of the sandbox
   * of each connection. Takes over from another process that serves it.
   */
  serveJails(service: string, serve: ServeJail): Promise<{ close(): Promise<void> }>
  /** Stops all running sandboxes at the same time. Throws an AggregateError of the failures after all were tried. */
  stopAll(options: { graceMs: number }, signal: AbortSignal): Promise<void>
  /** Processes of stopped sandboxes. They may include processes of a sandbox that is just starting or stopping. */
  orphans(signal: AbortSignal): Promise<{ what: string; pids: number[] }[]>
}

const isRoot = process.getuid?.() === 0
const pollMs = 50
const leftOverGraceMs = 5000
const destroyGraceMs = 2000
/** Maximum concurrent measurements: each reads the disk. */
const foldersAtOnce = 2
/** The exit code of a gateway after SIGKILL. */
const killedCode = 137

const jailed =
  'Each agent is isolated in a jail: it sees no file, process or network of this machine or of other agents.'
const sharesLimits =
  'They run as the user that runs Chowder, and share the kernel’s limits of that user: one agent can use them up for all.'
const notJailed = isRoot
  ? 'Each agent runs as a user of its own, but agents are not isolated from this machine.'
  : 'Agents run as the user that runs Chowder: agents are not isolated from this machine, nor from each other.'

const run = promisify(execFile)

/**
 * Creates the driver of a data folder's sandboxes. They outlive this process, and the next driver of the folder finds
 * them. Under root each sandbox has its own user; otherwise all run as the control plane's user. Throws a StartupError
 * on any system but Linux.
 */
export function createLocalDriver(options: LocalDriverOptions): LocalDriver {
  if (process.platform !== 'linux') throw new StartupError('SANDBOX_DRIVER=local runs on Linux only.')
  const { jail, noJail, installRelease, installChannelPlugin, linkCompileCache, log } = options
  const dataDir = resolve(options.dataDir)
  const parent = join(dataDir, 'sandboxes')
  const records = createRecords({
    ...options,
    dataDir: resolve(options.numbersDir ?? dataDir),
    isJailed: noJail === null,
  })
  const folderOf = (id: string) => sandboxFolder(parent, id)

  const measure = createMeasure()
  const ends = createEnds()
  const controlGroups = lazyControlGroups(dataDir, parent, log)

  const homeOf = ({ home, uploads }: SandboxFolder, { uid }: SandboxRecord) => ({ path: home, uid, uploads })

  async function create(spec: SandboxSpec, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    const folder = folderOf(spec.id)
    const old = (await folder.readRecord()) ? await records.existing(folder) : null
    const { uid } = old ?? (await records.make(spec, folder))
    await mkdir(folder.home, { recursive: true, mode: 0o700 })
    // Also after a restored copy without owners.
    if (uid !== null && (await stat(folder.home)).uid === 0) await chownTree(folder.home, { uid, gid: uid })
    if (!old || (await liveGateway(folder, uid))) return
    await folder.removeStaleUploads()
    await records.renew(spec, folder, old, signal)
  }

  /** Also a group without a gateway: a process that enters a frozen one halts, and none ends there. */
  async function thaw(folder: SandboxFolder): Promise<void> {
    const group = await folder.controlGroup()
    if (group) await thawGroup(group)
  }

  async function stop(id: string, { graceMs }: { graceMs: number }, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted()
    const folder = folderOf(id)
    if (!(await folder.exists())) return
    const uid = await records.uidOf(folder)
    if (isRoot && uid === null) return // the sandbox has no process
    await thaw(folder)
    let isAsked = false
    async function hasEnded(): Promise<boolean> {
      const gateway = await liveGateway(folder, uid)
      if (gateway && !isAsked) signalProcess(gateway.pid, 'SIGTERM')
      isAsked = true
      return gateway === null
    }
    await poll(hasEnded, { pauseMs: pollMs, timeoutMs: graceMs, signal })
    // The first process of a jail passes the exit code on.
    if (await folder.init()) await launcherEnded(folder, signal)
    await endProcesses(await ownerOf(folder, uid), { graceMs: 0 }, signal)
    await launcherEnded(folder, signal)
  }

  async function observe(id: string, signal: AbortSignal): Promise<Observation> {
    signal.throwIfAborted()
    const folder = folderOf(id)
    const record = await folder.readRecord()
    if (!record) return { state: 'absent', sandboxId: null, endpoint: null, paths: null }
    const { paths, uid, isJailed } = record
    const seen = { sandboxId: `local-${id.slice(0, 8)}`, paths }
    await rotateLog(folder.log)
    const gateway = await liveGateway(folder, uid)
    if (gateway) {
      ends.note(id, gateway)
      const group = await folder.controlGroup()
      if (group && (await isFrozen(group))) return { ...seen, state: 'frozen', endpoint: null }
      const endpoint = isJailed
        ? ({ kind: 'unix', path: folder.gatewaySocket } as const)
        : ({ kind: 'tcp', host: '127.0.0.1', port: paths.port } as const)
      return { ...seen, state: 'running', endpoint }
    }
    const stopped = { ...seen, state: 'stopped' as const, endpoint: null }
    if (!(await folder.gateway())) return stopped
    if ((await folder.exitCode()) === null) await launcherEnded(folder, signal)
    const code = await folder.exitCode()
    const group = code === killedCode ? await folder.controlGroup() : null
    return { ...stopped, exit: { code, oom: group !== null && (await ranOutOfMemory(group)) } }
  }

  async function sandboxIds(): Promise<string[]> {
    const names = await readdir(parent).catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return []
      throw error
    })
    return names.filter(isSandboxId)
  }

  async function* list(signal: AbortSignal) {
    for (const id of await sandboxIds()) {
      const { state } = await observe(id, signal)
      // A folder without a record belongs to a half-created or half-removed sandbox.
      if (state !== 'absent') yield { id, state }
      else if (await folderOf(id).exists()) yield { id, state: 'stopped' as const }
    }
  }

  return {
    name: 'local',
    isolation:
      noJail !== null ? `${notJailed} There is no jail: ${noJail}.` : isRoot ? jailed : `${jailed} ${sharesLimits}`,
    hasTwoRooms: noJail === null && hasPython(),
    isForOneOrganization: !isRoot && !options.acceptsOneUser,
    isExposed: !isRoot && noJail !== null && !options.acceptsOneUser,
    list,
    observe,
    ends: ends.follow,
    async activity(id, signal) {
      signal.throwIfAborted()
      const folder = folderOf(id)
      const gateway = await liveGateway(folder, await records.uidOf(folder))
      return gateway && readActivity(gateway)
    },
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
      const record = await records.existing(folder)
      if (await liveGateway(folder, record.uid)) return
      await thaw(folder)
      // A gateway refuses a folder of another owner, and the agent's own programs may still write to it.
      const owner = await ownerOf(folder, record.uid)
      const leftOver = await processesOf(owner)
      if (await liveGateway(folder, record.uid)) return // another start has just recorded it
      if (leftOver.length > 0) {
        await endProcesses(owner, { graceMs: leftOverGraceMs }, signal)
        log?.warn(
          { instanceId: id, processes: leftOver.length },
          'ended the processes that an earlier gateway had left running',
        )
      }
      await launcherEnded(folder, signal)
      const isFree = record.isJailed || (await becomesFree(record.paths.port, signal))
      if (await liveGateway(folder, record.uid)) return // another start has recorded it meanwhile
      if (!isFree) throw new Error(`port ${record.paths.port} is taken by a foreign program`)
      await rotateLog(folder.log)
      if (record.uid !== null) await linkCompileCache(record.paths.release, record.uid)
      const group = await makeGroup(await controlGroups(), folder, record.resources)
      if (group) await waitUntilEmpty(group, signal)
      await launchGateway(folder, record, { group, jail: record.isJailed ? jail : null }, signal)
    },
    async destroy(id, signal) {
      signal.throwIfAborted()
      await stop(id, { graceMs: destroyGraceMs }, signal)
      const group = await folderOf(id).controlGroup()
      if (group) await removeGroup(group, signal)
      await run('/bin/rm', ['-rf', '--', folderOf(id).path], { signal }).catch((error) => {
        signal.throwIfAborted()
        throw error
      })
      await records.free(id)
    },
    async freeze(id, signal) {
      signal.throwIfAborted()
      const folder = folderOf(id)
      const group = (await liveGateway(folder, await records.uidOf(folder))) && (await folder.controlGroup())
      return group !== null && freezeGroup(group, await freeSwap(), signal)
    },
    async thaw(id, signal) {
      signal.throwIfAborted()
      await thaw(folderOf(id))
    },
    async exec(id, argv, execOptions, signal) {
      signal.throwIfAborted()
      const folder = folderOf(id)
      const record = await records.existing(folder)
      const cwd = relative(folder.home, resolve(folder.home, execOptions.cwd ?? ''))
      await using workingFolder = await openFolderAt(homeOf(folder, record), cwd)
      if (record.isJailed) return await execInJail(jail, folder, record, argv, { ...execOptions, cwd }, signal)
      // Awaited, so that the folder is closed afterwards: a failure meanwhile would have no handler.
      return await execBeside(record, await folder.controlGroup(), workingFolder, argv, execOptions, signal)
    },
    async readLog(id, logOptions, signal) {
      signal.throwIfAborted()
      return readLog(folderOf(id).log, logOptions)
    },
    async limit(id, resources, signal) {
      signal.throwIfAborted()
      const folder = folderOf(id)
      const record = await folder.readRecord()
      const isRunning = record && (await liveGateway(folder, record.uid))
      return isRunning ? changeLimits(folder, record, resources) : noKeptLimits
    },
    async diskUse(ids, signal) {
      const sizes = await pMap(
        ids,
        async (id) => {
          const folder = folderOf(id)
          if (!(await folder.exists())) return []
          await rotateLog(folder.log)
          const bytes = await diskUseOf(folder, await records.uidOf(folder), signal)
          return bytes === null ? [] : [[id, bytes] as const]
        },
        { concurrency: foldersAtOnce, signal },
      )
      return new Map(sizes.flat())
    },
    async memoryUse(id, signal) {
      signal.throwIfAborted()
      const folder = folderOf(id)
      return memoryUseOf(folder, await records.uidOf(folder))
    },
    async measure(id, signal) {
      signal.throwIfAborted()
      const folder = folderOf(id)
      return measure(folder, await records.uidOf(folder), signal)
    },
    files(id) {
      const folder = folderOf(id)
      return filesIn(async () => homeOf(folder, await records.existing(folder)))
    },
    serveJails: (service, serve) => serveWayOut(waysOutFolder(dataDir), service, serve),
    async orphans(signal) {
      const found: { what: string; pids: number[] }[] = []
      for await (const { id, state } of list(signal)) {
        const folder = folderOf(id)
        const record = await folder.readRecord()
        if (!record) continue
        const pids = state !== 'stopped' ? [] : await processesOf(await ownerOf(folder, record.uid))
        if (pids.length > 0) found.push({ what: `The sandbox ${id} is stopped`, pids })
      }
      return found
    },
    async stopAll(stopOptions, signal) {
      const stopping: Promise<void>[] = []
      for await (const { id, state } of list(signal))
        if (state === 'running' || state === 'frozen') stopping.push(stop(id, stopOptions, signal))
      const failed = (await Promise.allSettled(stopping)).filter((result) => result.status === 'rejected')
      if (failed.length > 0)
        throw new AggregateError(
          failed.map(({ reason }) => reason),
          'some agents could not be stopped',
        )
    },
  }
}
