import { EventEmitter, on } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import {
  type Activity,
  type Endpoint,
  type ExecResult,
  type KeptLimits,
  type LogPage,
  noKeptLimits,
  type Observation,
  type Progress,
  type Resources,
  SandboxAbsentError,
  type SandboxDriver,
  type SandboxFiles,
  type SandboxSpec,
  SandboxUnavailableError,
  type Usage,
} from '#sandbox/driver.ts'
import { type MemoryFolder, memoryFiles } from './memory-files.ts'

/** What may go wrong in a call, and when: before it had its effect, or after (the reply was lost). */
export interface Fault {
  method:
    | 'prepare'
    | 'prepareChannel'
    | 'create'
    | 'start'
    | 'stop'
    | 'destroy'
    | 'observe'
    | 'activity'
    | 'freeze'
    | 'thaw'
    | 'list'
    | 'exec'
  error?: Error
  when?: 'before' | 'after'
  /** How many calls it strikes; one unless said otherwise. */
  times?: number
  /** Hangs this long first, or until the call is aborted. */
  hangMs?: number
}

/** `turns`: at rest. `computes`: without a pause. `hangs`: does nothing any more. */
export type Loop = 'turns' | 'computes' | 'hangs'

interface FakeSandbox {
  spec: SandboxSpec
  running: boolean
  frozen?: boolean
  exit: { code: number | null; oom: boolean } | null
  files: MemoryFolder
}

/**
 * A driver whose sandboxes are entries in memory, with faults on demand. It keeps the driver's contract; its gateway
 * is wherever the test says.
 */
export class FakeDriver implements SandboxDriver {
  readonly name = 'fake'
  readonly isolation = 'Nothing runs.'
  hasTwoRooms = true
  isForOneOrganization = false
  /** Whether the platform cannot be reached. */
  isAway = false
  /** Whether it freezes sandboxes. */
  freezes = false
  readonly sandboxes = new Map<string, FakeSandbox>()
  readonly calls: { method: Fault['method']; id: string }[] = []
  /** How often a sandbox was made, by instance: more often than it was destroyed is two of one instance. */
  readonly creations = new Map<string, number>()
  /** How often a gateway was started, by instance. */
  readonly starts = new Map<string, number>()
  /** Called before each call; may throw or wait. */
  onCall: (method: Fault['method'], id: string) => void | Promise<void> = () => {}
  /** What a gateway does right after it was started: an exit code ends it. */
  exitAfterStart: ((id: string) => number | null) | null = null
  /** What the event loops of gateways do, and have done. */
  loop: Loop = 'turns'
  readonly activities: Activity = { switches: 0, cpuSeconds: 0 }
  /** What `exec` answers. */
  execResult: ExecResult = { exitCode: 0, stdout: '', stderr: '' }
  /** What `exec` answers to a program; without an answer it is `execResult`. */
  onExec: (argv: readonly string[]) => ExecResult | undefined = () => undefined
  /** The limits that `limit` has set, and what tests have sandboxes use. */
  readonly limits = new Map<string, Resources>()
  readonly diskBytes = new Map<string, number>()
  readonly memoryBytes = new Map<string, number>()
  output = 'starting\n'
  readonly #endpoint: (id: string) => Endpoint
  readonly #faults: Required<Fault>[] = []
  readonly #ended = new EventEmitter()

  constructor(endpoint: (id: string) => Endpoint = () => ({ kind: 'tcp', host: '127.0.0.1', port: 9 })) {
    this.#endpoint = endpoint
  }

  fail(fault: Fault): void {
    this.#faults.push({ error: new Error('the platform failed'), when: 'before', times: 1, hangMs: 0, ...fault })
  }

  heal(): void {
    this.#faults.length = 0
    this.isAway = false
  }

  async outage(): Promise<string | null> {
    return this.isAway ? 'The platform cannot be reached.' : null
  }

  /** The gateway ends by itself. */
  die(id: string, code: number | null = 1, oom = false): void {
    const sandbox = this.#existing(id)
    sandbox.running = false
    sandbox.frozen = false
    sandbox.exit = { code, oom }
    this.#ended.emit('end', id)
  }

  async *ends(signal: AbortSignal): AsyncGenerator<string> {
    try {
      for await (const [id] of on(this.#ended, 'end', { signal })) yield id
    } catch {
      signal.throwIfAborted()
    }
  }

  file(id: string, path: string): string | null {
    return this.sandboxes.get(id)?.files.get(path)?.content?.toString() ?? null
  }

  async #call<T>(method: Fault['method'], id: string, signal: AbortSignal, effect: () => T): Promise<T> {
    signal.throwIfAborted()
    this.calls.push({ method, id })
    await this.onCall(method, id)
    if (this.isAway) throw new SandboxUnavailableError(new Error('no route to the platform'))
    const fault = this.#faults.find((candidate) => candidate.method === method && candidate.times > 0)
    if (fault) {
      fault.times -= 1
      if (fault.when === 'after') effect()
      if (fault.hangMs > 0) await sleep(fault.hangMs, undefined, { signal }).catch(() => signal.throwIfAborted())
      throw fault.error
    }
    const result = effect()
    await sleep(1, undefined, { signal }).catch(() => signal.throwIfAborted())
    return result
  }

  prepare(release: string, _progress: Progress, signal: AbortSignal) {
    return this.#call('prepare', release, signal, () => {})
  }

  prepareChannel(_release: string, channel: string, _progress: Progress, signal: AbortSignal) {
    return this.#call('prepareChannel', channel, signal, () => {})
  }

  create(spec: SandboxSpec, signal: AbortSignal) {
    return this.#call('create', spec.id, signal, () => {
      if (this.sandboxes.has(spec.id)) return
      this.creations.set(spec.id, (this.creations.get(spec.id) ?? 0) + 1)
      this.sandboxes.set(spec.id, { spec, running: false, exit: null, files: new Map() })
    })
  }

  start(id: string, signal: AbortSignal) {
    return this.#call('start', id, signal, () => {
      const sandbox = this.#existing(id)
      if (sandbox.running) return
      this.starts.set(id, (this.starts.get(id) ?? 0) + 1)
      const code = this.exitAfterStart?.(id) ?? null
      sandbox.running = code === null
      sandbox.exit = code === null ? null : { code, oom: false }
    })
  }

  stop(id: string, _options: { graceMs: number }, signal: AbortSignal) {
    return this.#call('stop', id, signal, () => {
      const sandbox = this.sandboxes.get(id)
      if (sandbox?.running) this.die(id, 0)
    })
  }

  destroy(id: string, signal: AbortSignal) {
    return this.#call('destroy', id, signal, () => {
      this.sandboxes.delete(id)
      this.limits.delete(id)
    })
  }

  freeze(id: string, signal: AbortSignal) {
    return this.#call('freeze', id, signal, () => {
      const sandbox = this.#existing(id)
      sandbox.frozen = sandbox.running && this.freezes
      return sandbox.frozen
    })
  }

  thaw(id: string, signal: AbortSignal) {
    return this.#call('thaw', id, signal, () => {
      this.#existing(id).frozen = false
    })
  }

  observe(id: string, signal: AbortSignal): Promise<Observation> {
    return this.#call('observe', id, signal, () => {
      const sandbox = this.sandboxes.get(id)
      if (!sandbox) return { state: 'absent', sandboxId: null, endpoint: null, paths: null }
      const paths = {
        ...{ node: process.execPath, release: '/release', home: `/sandbox/${id}`, port: 18789 },
        ...(sandbox.spec.room && { room: { ssh: '/programs/ssh', root: '/room' } }),
      }
      const seen = { sandboxId: `fake-${id.slice(0, 8)}`, paths }
      if (sandbox.frozen) return { ...seen, state: 'frozen', endpoint: null }
      if (sandbox.running) return { ...seen, state: 'running', endpoint: this.#endpoint(id) }
      return { ...seen, state: 'stopped', endpoint: null, ...(sandbox.exit && { exit: sandbox.exit }) }
    })
  }

  activity(id: string, signal: AbortSignal): Promise<Activity | null> {
    return this.#call('activity', id, signal, () => {
      if (this.loop === 'turns') this.activities.switches += 50
      if (this.loop === 'computes') this.activities.cpuSeconds += 1
      return this.sandboxes.get(id)?.running ? { ...this.activities } : null
    })
  }

  async *list(signal: AbortSignal) {
    await this.#call('list', '', signal, () => {})
    for (const [id, { running, frozen }] of this.sandboxes)
      if (frozen) yield { id, state: 'frozen' as const }
      else
        yield running
          ? { id, state: 'running' as const, endpoint: this.#endpoint(id) }
          : { id, state: 'stopped' as const }
  }

  exec(id: string, argv: readonly string[], _options: object, signal: AbortSignal) {
    return this.#call('exec', id, signal, () => {
      this.#existing(id)
      return this.onExec(argv) ?? this.execResult
    })
  }

  async readLog(
    id: string,
    { lines, after }: { lines: number; after?: string },
    signal: AbortSignal,
  ): Promise<LogPage> {
    signal.throwIfAborted()
    const all = this.sandboxes.has(id) ? this.output.split('\n') : ['']
    const rest = all.pop() ?? ''
    const from = after === undefined ? Math.max(0, all.length - lines) : Number(after)
    const shown = all.slice(from, from + lines)
    const toLine = (text: string) => ({ text, isCut: false })
    return {
      lines: shown.map(toLine),
      rest: rest === '' ? null : toLine(rest),
      position: String(from + shown.length),
      hasGap: false,
    }
  }

  async limit(id: string, resources: Resources, signal: AbortSignal): Promise<KeptLimits> {
    signal.throwIfAborted()
    const { memoryMb, cpus, pids } = resources
    if (!this.sandboxes.get(id)?.running) return noKeptLimits
    this.limits.set(id, resources)
    return { memoryMb, cpus, pids, diskMb: null }
  }

  async diskUse(ids: readonly string[], signal: AbortSignal): Promise<Map<string, number>> {
    signal.throwIfAborted()
    return new Map(ids.filter((id) => this.sandboxes.has(id)).map((id) => [id, this.diskBytes.get(id) ?? 43e6]))
  }

  async memoryUse(id: string, signal: AbortSignal) {
    signal.throwIfAborted()
    return this.sandboxes.get(id)?.running ? (this.memoryBytes.get(id) ?? 900e6) : null
  }

  async measure(id: string, signal: AbortSignal): Promise<Usage> {
    signal.throwIfAborted()
    const isRunning = this.sandboxes.get(id)?.running === true
    return {
      since: isRunning ? new Date('2026-02-14T16:00:00Z') : null,
      memoryBytes: isRunning ? (this.memoryBytes.get(id) ?? 900e6) : null,
      memoryLimitBytes: null,
      cpuSeconds: isRunning ? 1.5 : null,
      processes: isRunning ? 4 : null,
      diskBytes: this.sandboxes.has(id) ? 43e6 : null,
    }
  }

  files(id: string): SandboxFiles {
    return memoryFiles(() => this.#existing(id).files)
  }

  #existing(id: string): FakeSandbox {
    const sandbox = this.sandboxes.get(id)
    if (!sandbox) throw new SandboxAbsentError(`there is no sandbox ${id}`)
    return sandbox
  }
}
