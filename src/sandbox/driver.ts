import type { Readable } from 'node:stream'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'

export {
  type PathFault,
  SandboxAbsentError,
  SandboxCapacityError,
  SandboxPathError,
  SandboxProblemError,
} from './errors.ts'

/** The paths that a program in the sandbox uses, and the port on which its gateway must listen. */
export interface SandboxPaths {
  node: string
  /** The folder of the prepared release, with its `node_modules`. Read-only for the program. */
  release: string
  /** The sandbox's own folder, the root of {@link SandboxFiles}. */
  home: string
  port: number
  /** The URL of the proxy for connections to other hosts; absent if programs need none. */
  proxy?: string
  /** Whether the proxy requires the agent's credentials, because it cannot identify its connections. */
  proxyAsksWho?: boolean
  /** The separate room; absent without one. */
  room?: RoomPaths
}

/** The way from the gateway to the room of its agent's tools. */
export interface RoomPaths {
  /** A program with the interface of `ssh` that passes a command to the room. */
  ssh: string
  /** The folder in the room that contains `place` of the RoomSpec. */
  root: string
}

/** A room of the agent's tools, which contains one folder of the sandbox and has no network. */
export interface RoomSpec {
  /** The folder that the room shares with the gateway, and the folder of the room's socket, relative to the home. */
  folder: string
  socketFolder: string
  /** The path of the shared folder in the room, below its root. */
  place: string
  /** A folder in the shared one that the room sees as empty and read-only. */
  hidden: string
}

/** The resource limits of a sandbox. */
export interface Resources {
  memoryMb: number
  cpus: number
  /** Processes and threads. */
  pids: number
  /** Maximum size of the own folder, and of each file. 0 means no limit. */
  diskMb: number
}

/** The limits that the platform enforces for a sandbox; null for each one that it does not. */
export type KeptLimits = { [Name in keyof Resources]: number | null }

/** The enforced limits of a stopped sandbox. */
export const noKeptLimits: KeptLimits = { memoryMb: null, cpus: null, pids: null, diskMb: null }

export interface SandboxSpec {
  /** The instance's id, which identifies the sandbox. */
  id: string
  organizationId: string
  /** The name of a release that `prepare` has made available. */
  release: string
  /** The gateway's argument vector. It never holds a secret: those are in files of mode 0600. */
  command(paths: SandboxPaths): readonly string[]
  /** The gateway's whole environment, without any of the control plane's own. */
  env(paths: SandboxPaths): Record<string, string>
  resources: Resources
  /**
   * The separate room; absent if tools run beside the gateway. Only for a driver with `hasTwoRooms`. Its folders must
   * exist when the gateway is started.
   */
  room?: RoomSpec
  labels: Record<string, string>
}

/** The gateway's address for the control plane. */
export type Endpoint =
  | { kind: 'tcp'; host: string; port: number; headers?: Record<string, string> }
  | { kind: 'unix'; path: string }

export interface Observation {
  state: 'absent' | 'stopped' | 'running' | 'frozen'
  /** The platform's name of the sandbox, for display only. */
  sandboxId: string | null
  /** null unless the sandbox runs. */
  endpoint: Endpoint | null
  /** null when the sandbox is absent. */
  paths: SandboxPaths | null
  /**
   * The end of the gateway of a stopped sandbox, if it was observed. The exit code for a signal is 128 + its number.
   */
  exit?: { code: number | null; oom: boolean }
}

/** A sandbox in the list of all. */
export interface Listed extends Pick<Observation, 'state'> {
  id: string
  /** Absent if a sandbox keeps one address for its whole life, and while it does not run. */
  endpoint?: Endpoint
}

export interface ExecOptions {
  timeoutMs: number
  cwd?: string
  stdin?: Buffer
  /** Maximum bytes of output of each stream; the rest is dropped. */
  maxBytes?: number
}

export interface ExecResult {
  /** null when the program was killed at its deadline. */
  exitCode: number | null
  stdout: string
  stderr: string
}

/** A line of a gateway's output, without its end. */
export interface LogLine {
  text: string
  /** Whether the line is longer than 16 KiB: its rest is omitted. */
  isCut: boolean
}

/** Lines of a gateway's output, of all its runs, in order: at most 1 MiB. */
export interface LogPage {
  lines: LogLine[]
  /** The text after the last line, which has no end yet. Lines after `position` begin with it. */
  rest: LogLine | null
  /** The end of the last line: pass it as `after` to read on. Opaque to all but its driver. */
  position: string
  /** Whether lines after `after` are missing, because the log was shortened meanwhile or they were too many. */
  hasGap: boolean
}

/** The resource use of a sandbox. Null means unknown. */
export interface Usage {
  /** When the gateway was started; null when it does not run. */
  since: Date | null
  /** The memory of all its processes. */
  memoryBytes: number | null
  /** Null also without a limit. */
  memoryLimitBytes: number | null
  /** The processor time of its processes since `since`. */
  cpuSeconds: number | null
  processes: number | null
  /** The size of its own folder, which may be a minute old. */
  diskBytes: number | null
}

/** The use of a sandbox that does not run. */
export const noUsage: Usage = {
  since: null,
  memoryBytes: null,
  memoryLimitBytes: null,
  cpuSeconds: null,
  processes: null,
  diskBytes: null,
}

/** The past activity of a gateway. The counts only grow. */
export interface Activity {
  /**
   * How often its main thread has waited: its voluntary context switches. A working event loop waits many times a
   * second, also at rest. A main thread that computes, is blocked or is stopped never does.
   */
  switches: number
  /** The processor time of the gateway, and of the child that its main thread may be waiting for. */
  cpuSeconds: number
}

export interface FileStat {
  name: string
  /** `other` is a device, a pipe or a socket. */
  kind: 'file' | 'directory' | 'link' | 'other'
  size: number
  modifiedAt: Date
  /** Permission bits. */
  mode: number
}

/** A file that is open for reading, even while another file replaces it at its path. */
export interface OpenFile {
  size: number
  modifiedAt: Date
  /**
   * The bytes from `start` up to but not including `end`, by default all of them. Fails with a SandboxPathError when
   * the file has become shorter. Closes the file at the end, or when the stream is destroyed. Call it once.
   */
  content(range?: { start: number; end: number }): Readable
  /** Closes an unread file. */
  close(): Promise<void>
}

/**
 * Files in a sandbox's own folder, whether the gateway runs or not. Paths are relative to the folder, with `/`. Throws
 * a SandboxPathError for a path that leaves the folder or leads through any symbolic link, and for anything but plain
 * files and folders; no call waits for a pipe. Throws SandboxAbsentError when there is no sandbox, and
 * SandboxCapacityError when its disk is full.
 */
export interface SandboxFiles {
  /**
   * The entries of a folder, sorted by name; a link is not followed. Returns any `maxEntries` of them if there are
   * more.
   */
  list(
    path: string,
    options: { maxEntries: number },
    signal: AbortSignal,
  ): Promise<{ entries: FileStat[]; isWhole: boolean }>
  /** null when the path does not exist. A link is not followed. */
  stat(path: string, signal: AbortSignal): Promise<FileStat | null>
  /**
   * null when there is no such file. Throws a SandboxPathError for a file of more than `maxBytes`. The signal also ends
   * the content.
   */
  read(path: string, options: { maxBytes: number }, signal: AbortSignal): Promise<OpenFile | null>
  /**
   * Writes a file atomically: it has its old or its new content, even after a failure, an abort or a kill half-way.
   * Makes missing folders. The sandbox's own user owns the file. The default mode is that of the replaced file, and
   * 0600 for a new one. Throws a SandboxPathError for more than `maxBytes`.
   */
  write(
    path: string,
    content: Buffer | Readable,
    options: { mode?: number; maxBytes?: number },
    signal: AbortSignal,
  ): Promise<void>
  /** Makes a folder, and those above it, unless they exist. */
  mkdir(path: string, signal: AbortSignal): Promise<void>
  /** Renames a file, folder or link. Makes missing folders. With `overwrite` a file replaces another file. */
  move(from: string, to: string, options: { overwrite: boolean }, signal: AbortSignal): Promise<void>
  /**
   * Removes a file, a link itself, or a folder, which must be empty unless `recursive`. False when nothing was there.
   */
  remove(path: string, options: { recursive: boolean }, signal: AbortSignal): Promise<boolean>
}

/** Longer than most short failures of a platform. */
const retryAfterSeconds = 5

/**
 * The platform was unreachable, failed, or is overloaded. The call may have had its effect, and may succeed later. The
 * platform's error is the cause, for the log only: it may name hosts and paths.
 */
export class SandboxUnavailableError extends AppError {
  /** Whether the driver has logged the outage: one line for all calls that it makes fail. */
  readonly isLogged: boolean

  constructor(cause: unknown, { isLogged = false } = {}) {
    super('unavailable', texts.sandboxesUnavailable, { cause, retryAfterSeconds })
    this.name = 'SandboxUnavailableError'
    this.isLogged = isLogged
  }
}

/** Reports progress with a line for people; the next line replaces a temporary one. */
export type Progress = (line: string, isPassing?: boolean) => void

/**
 * The platform of instances, each in a sandbox under the instance's id. Every method can be repeated after a crash:
 * create finds the existing sandbox; start, stop and destroy do nothing when their work is done. A driver reports the
 * state of its platform and decides nothing. Every method throws its signal's reason soon after an abort, and
 * SandboxUnavailableError when a remote platform fails.
 */
export interface SandboxDriver {
  readonly name: string
  /** A sentence for operators on how agents are isolated from this machine and from each other. */
  readonly isolation: string
  /** Whether the tools of an agent can run in a separate room; absent if they cannot. */
  readonly hasTwoRooms?: boolean
  /**
   * Whether only one organization may be created: all agents run as the user of Chowder and share the kernel's limits of
   * that user, and the operator has not accepted that. Absent: several are allowed.
   */
  readonly isForOneOrganization?: boolean
  /**
   * Whether agents can read the files of Chowder's user, its secret key and each other's files, and the operator has not
   * accepted that: then others may not reach Chowder either. Absent: they cannot.
   */
  readonly isExposed?: boolean
  /**
   * The sentence for operators while a remote platform is unreachable; null when it answers. Attempts that fail during
   * an outage are not counted. Absent for a platform that is this host.
   */
  outage?(signal: AbortSignal): Promise<string | null>
  /**
   * Restores missing rules that keep running sandboxes from their platform: programs on that machine may have removed
   * some. Returns whether any were missing. Absent if there are no such rules.
   */
  protect?(signal: AbortSignal): Promise<boolean>
  /** The address of this host for sandboxes, and for services that listen for them. Absent if it is 127.0.0.1. */
  hostAddress?(signal: AbortSignal): Promise<string>
  /**
   * Makes a release available to the sandboxes. Takes minutes on the first call, and returns at once later. Throws
   * InstallError.
   */
  prepare(release: string, progress: Progress, signal: AbortSignal): Promise<void>
  /** Prepares the plugin of a chat channel, which is installed beside the release, in the same way. */
  prepareChannel(release: string, channel: string, progress: Progress, signal: AbortSignal): Promise<void>
  create(spec: SandboxSpec, signal: AbortSignal): Promise<void>
  /** Returns when the gateway's process exists, which may be before it is ready. */
  start(id: string, signal: AbortSignal): Promise<void>
  /** Ends the gateway, and kills the remaining processes after the grace time. */
  stop(id: string, options: { graceMs: number }, signal: AbortSignal): Promise<void>
  destroy(id: string, signal: AbortSignal): Promise<void>
  /**
   * Halts all processes of a running sandbox where they are, and moves their memory to swap. Returns false, with the
   * sandbox running, if its host has no swap for it. `stop` and `destroy` also end a frozen sandbox. Absent, as is
   * `thaw`, if the platform cannot do that.
   */
  freeze?(id: string, signal: AbortSignal): Promise<boolean>
  /** Lets the processes of a frozen sandbox go on. */
  thaw?(id: string, signal: AbortSignal): Promise<void>
  observe(id: string, signal: AbortSignal): Promise<Observation>
  /**
   * The ids of sandboxes whose gateways end, within a second, until the signal is aborted, which throws its reason.
   * Ends that occur while no caller follows may be missing, and an id may come again. Absent if the platform does not
   * report ends.
   */
  ends?(signal: AbortSignal): AsyncIterable<string>
  /** The activity that distinguishes a working gateway from a hung one; null if it does not run, or is unknown. */
  activity(id: string, signal: AbortSignal): Promise<Activity | null>
  /** Every sandbox of this installation, also those without a row. */
  list(signal: AbortSignal): AsyncIterable<Listed>
  /**
   * Runs a program as the gateway's user beside the gateway; call it only while the sandbox runs. At its deadline the
   * exit code is null; this throws nothing.
   */
  exec(id: string, argv: readonly string[], options: ExecOptions, signal: AbortSignal): Promise<ExecResult>
  /**
   * The last lines of the gateway's output or, with `after`, the first ones behind that position; none without a
   * sandbox. They are the tenant's data and may contain secrets: they must not be logged.
   */
  readLog(id: string, options: { lines: number; after?: string | undefined }, signal: AbortSignal): Promise<LogPage>
  /**
   * Changes the limits of a running sandbox. Returns those that its platform now enforces: all null if it does not run.
   * Keeps the memory limit while more than the new one is used. The maximum file size of `diskMb` changes with the next
   * start.
   */
  limit(id: string, resources: Resources, signal: AbortSignal): Promise<KeptLimits>
  /**
   * The measured sizes of the folders of sandboxes, including stopped ones, and of deleted files that their processes
   * have open. Omits unknown ones.
   */
  diskUse(ids: readonly string[], signal: AbortSignal): Promise<Map<string, number>>
  /**
   * The memory that counts against the limit of a sandbox, in bytes; null if unknown. If two rooms each have the limit,
   * the memory of the fuller one.
   */
  memoryUse(id: string, signal: AbortSignal): Promise<number | null>
  /** The current use of the sandbox. Everything is null for a sandbox that does not exist. */
  measure(id: string, signal: AbortSignal): Promise<Usage>
  files(id: string): SandboxFiles
  /**
   * Calls `use` with files for successive calls, which the platform combines into one. Absent if single calls are as
   * cheap; see {@link useFiles}.
   */
  filesBatch?<T>(id: string, use: (files: SandboxFiles) => Promise<T>): Promise<T>
}

/** Calls `use` with the files of a sandbox, for several successive calls. */
export const useFiles = <T>(
  sandboxes: Pick<SandboxDriver, 'files' | 'filesBatch'>,
  id: string,
  use: (files: SandboxFiles) => Promise<T>,
): Promise<T> => (sandboxes.filesBatch ? sandboxes.filesBatch(id, use) : use(sandboxes.files(id)))

/** The methods for requests, which do not start or stop sandboxes. */
export type SandboxAccess = Pick<
  SandboxDriver,
  'observe' | 'exec' | 'files' | 'filesBatch' | 'readLog' | 'measure' | 'hostAddress'
>
