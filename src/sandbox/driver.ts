import type { Readable } from 'node:stream'

/** What a program in the sandbox sees: its Node.js, its release, its own folder, and the port its gateway must listen on. */
export interface Inside {
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
  command(inside: Inside): readonly string[]
  /** The whole environment of the gateway; nothing of the control plane's own is added. */
  env(inside: Inside): Record<string, string>
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
  inside: Inside | null
  /** How the gateway ended, when it is stopped and its end was seen. A signal is reported as 128 + its number. */
  exit?: { code: number | null; oom: boolean }
}

export interface ExecOptions {
  timeoutMs: number
  cwd?: string
  env?: Record<string, string>
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
  kind: 'file' | 'directory' | 'other'
  size: number
  modifiedAt: Date
  mode: number
}

/**
 * Files in a sandbox's own folder. Paths are relative to it, with `/`; a path that would leave it, also through a
 * symbolic link planted by the tenant, is refused with a SandboxPathError. Works whether the gateway runs or not.
 */
export interface SandboxFiles {
  list(path: string, signal: AbortSignal): Promise<FileStat[]>
  stat(path: string, signal: AbortSignal): Promise<FileStat | null>
  /** null when there is no such file. Reads at most `maxBytes`, more is a SandboxPathError. */
  read(path: string, options: { maxBytes: number }, signal: AbortSignal): Promise<Buffer | null>
  /** Atomic: the file has its old content or the new one. Makes missing folders. The sandbox's own user owns the file. */
  write(path: string, content: Buffer | Readable, options: { mode: number }, signal: AbortSignal): Promise<void>
  move(from: string, to: string, signal: AbortSignal): Promise<void>
  /** Removes a file or a whole folder; no-op when absent. */
  remove(path: string, signal: AbortSignal): Promise<void>
}

/** A path that is not inside the sandbox's folder, or is not what the call needs. The message is safe to show. */
export class SandboxPathError extends Error {
  override name = 'SandboxPathError'
}

/** The platform has no room left for what was asked: retrying at once is useless. */
export class SandboxCapacityError extends Error {
  override name = 'SandboxCapacityError'
}

/** Called with one line fit for reading each time there is progress to show. */
export type Progress = (line: string) => void

/**
 * Where instances run, addressed by the instance's id. Any method may be called again after a crash: create finds the
 * one that already bears the id; start, stop and destroy are no-ops when already true. A driver reports what its
 * platform says and decides nothing. Every method ends soon after its signal is aborted, by throwing the signal's reason.
 */
export interface SandboxDriver {
  readonly name: string
  /** One sentence for operators: what keeps an agent from this machine and from other agents. */
  readonly isolation: string
  /** Makes a release available where this driver's sandboxes run; immediate when it already is. Minutes on the first call. */
  prepare(release: string, progress: Progress, signal: AbortSignal): Promise<void>
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
