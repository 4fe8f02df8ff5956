import type { Readable } from 'node:stream'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'

export { type PathFault, SandboxAbsentError, SandboxCapacityError, SandboxPathError } from './errors.ts'

/** What a program in the sandbox sees: its Node.js, its release, its own folder, and the port its gateway must listen on. */
export interface SandboxPaths {
  node: string
  /** The folder of the prepared release, holding `node_modules`. Read-only for the program. */
  release: string
  /** The sandbox's own folder, the root of {@link SandboxFiles}. */
  home: string
  port: number
}

export interface SandboxSpec {
  /** The instance's id: the sandbox is addressed by it from then on. */
  id: string
  organizationId: string
  /** Version name of a release that `prepare` has made available. */
  release: string
  /** Argument vector of the gateway. Secrets never go in here: they travel as 0600 files. */
  command(paths: SandboxPaths): readonly string[]
  /** The whole environment of the gateway; nothing of the control plane's own is added. */
  env(paths: SandboxPaths): Record<string, string>
  resources: { memoryMb: number; cpus: number; pids: number }
  labels: Record<string, string>
}

/** Where the control plane dials the gateway. */
export type Endpoint =
  | { kind: 'tcp'; host: string; port: number; headers?: Record<string, string> }
  | { kind: 'unix'; path: string }

export interface Observation {
  state: 'absent' | 'stopped' | 'running'
  /** The platform's own name for the sandbox, for display only. */
  sandboxId: string | null
  /** Set while the sandbox runs. */
  endpoint: Endpoint | null
  /** Set unless the sandbox is absent. */
  paths: SandboxPaths | null
  /** How the gateway ended, when it is stopped and its end was seen. A signal is reported as 128 + its number. */
  exit?: { code: number | null; oom: boolean }
}

export interface ExecOptions {
  timeoutMs: number
  cwd?: string
  stdin?: Buffer
  /** Output beyond this many bytes a stream is dropped. */
  maxBytes?: number
}

export interface ExecResult {
  /** null when the program was ended by its deadline. */
  exitCode: number | null
  stdout: string
  stderr: string
}

export interface FileStat {
  name: string
  /** What is neither of the first three is a device, a pipe or a socket. */
  kind: 'file' | 'directory' | 'link' | 'other'
  size: number
  modifiedAt: Date
  /** Permission bits. */
  mode: number
}

/** A file that was opened for reading: the same one from then on, whatever takes its place. */
export interface OpenFile {
  size: number
  modifiedAt: Date
  /**
   * The bytes from `start` up to but not including `end`, by default all `size` of them; fails with a SandboxPathError
   * when the file has become shorter. The file is closed at the end, or when this is destroyed. To be called once.
   */
  content(range?: { start: number; end: number }): Readable
  /** For what is not read: closes the file. */
  close(): Promise<void>
}

/**
 * Files in a sandbox's own folder. Paths are relative to it, with `/`. A path that would leave it and one that leads
 * through a symbolic link, wherever that points, are refused with a SandboxPathError, as is what is no plain file or
 * folder; no call waits for a pipe. Works whether the gateway runs or not. Throws SandboxAbsentError when there is no
 * sandbox, and SandboxCapacityError when its disk is full.
 */
export interface SandboxFiles {
  /** A folder's entries, sorted by name, links as themselves. Of a folder with more than `maxEntries`, any so many. */
  list(
    path: string,
    options: { maxEntries: number },
    signal: AbortSignal,
  ): Promise<{ entries: FileStat[]; isWhole: boolean }>
  /** null when there is nothing. Tells of a link itself. */
  stat(path: string, signal: AbortSignal): Promise<FileStat | null>
  /** null when there is no such file; more than `maxBytes` in it is a SandboxPathError. The signal ends the content too. */
  read(path: string, options: { maxBytes: number }, signal: AbortSignal): Promise<OpenFile | null>
  /**
   * Atomic: the file has its old content or the new one, also after a failure, an abort or a kill half-way. Makes missing
   * folders. The sandbox's own user owns the file. Without `mode` it keeps that of the file it replaces, a new one is
   * 0600. More than `maxBytes` is a SandboxPathError.
   */
  write(
    path: string,
    content: Buffer | Readable,
    options: { mode?: number; maxBytes?: number },
    signal: AbortSignal,
  ): Promise<void>
  /** Makes a folder, and those above it; no-op when it is there. */
  mkdir(path: string, signal: AbortSignal): Promise<void>
  /** Renames a file, folder or link; missing folders are made. Only a file takes the place of another, and if asked to. */
  move(from: string, to: string, options: { overwrite: boolean }, signal: AbortSignal): Promise<void>
  /** Removes a file or a link itself, or a folder: an empty one unless `recursive`. False when there was nothing. */
  remove(path: string, options: { recursive: boolean }, signal: AbortSignal): Promise<boolean>
}

/** Longer than a platform's hiccup, shorter than a caller's patience. */
const retryAfterSeconds = 5

/**
 * The platform could not be reached, failed, or has too much to do: the same call may succeed later, and what became of
 * this one is unknown. The platform's own words are the cause, for the log alone: they may name hosts and paths.
 */
export class SandboxUnavailableError extends AppError {
  constructor(cause: unknown) {
    super('unavailable', texts.sandboxesUnavailable, { cause, retryAfterSeconds })
    this.name = 'SandboxUnavailableError'
  }
}

/** Called with one line fit for reading each time there is progress to show. */
export type Progress = (line: string) => void

/**
 * Where instances run, addressed by the instance's id. Any method may be called again after a crash: create finds the
 * one that already bears the id; start, stop and destroy are no-ops when already true. A driver reports what its
 * platform says and decides nothing. Every method ends soon after its signal is aborted, by throwing the signal's reason,
 * and throws SandboxUnavailableError when a remote platform did not do its part.
 */
export interface SandboxDriver {
  readonly name: string
  /** One sentence for operators: what keeps an agent from this machine and from other agents. */
  readonly isolation: string
  /** Makes a release available where this driver's sandboxes run; immediate when it already is. Minutes on the first call. */
  prepare(release: string, progress: Progress, signal: AbortSignal): Promise<void>
  /** The same for the plugin of a chat channel: programs in the sandbox see it beside the release, under its own name. */
  prepareChannel(release: string, channel: string, progress: Progress, signal: AbortSignal): Promise<void>
  create(spec: SandboxSpec, signal: AbortSignal): Promise<void>
  /** Returns once the gateway's process exists; readiness is the caller's to check. */
  start(id: string, signal: AbortSignal): Promise<void>
  /** Asks the gateway to end, and kills what is left after the grace time. */
  stop(id: string, options: { graceMs: number }, signal: AbortSignal): Promise<void>
  destroy(id: string, signal: AbortSignal): Promise<void>
  observe(id: string, signal: AbortSignal): Promise<Observation>
  /** Every sandbox of this installation, also those without a row: for adoption, drift and repair. */
  list(signal: AbortSignal): AsyncIterable<{ id: string; state: Observation['state'] }>
  /** Runs a program as the gateway's user beside the gateway. A deadline passing is an exit code of null, not a throw. */
  exec(id: string, argv: readonly string[], options: ExecOptions, signal: AbortSignal): Promise<ExecResult>
  /** The last lines of the gateway's output: tenant data, never to be logged. */
  logs(id: string, lines: number): Promise<string>
  files(id: string): SandboxFiles
}

/** What a request may do to a sandbox: look at it, run a program in it, reach its files. Only workers start and stop. */
export type SandboxAccess = Pick<SandboxDriver, 'observe' | 'exec' | 'files'>
