import { type ChildProcess, spawn } from 'node:child_process'
import { createWriteStream } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import pTimeout from 'p-timeout'
import { compiledOnce } from '../support/compile-cache.ts'

const entry = join(import.meta.dirname, 'chowder.ts')
/** Longer than a process gives itself to close. */
const exitTimeoutMs = 130_000
const restartAfterMs = 500

/** One process of Chowder, started again whenever it has ended, as whatever supervises processes does. */
export interface Replica {
  role: 'api' | 'worker'
  /** Where its API answers; null while it does not run, and for a worker. */
  url(): string | null
  isRunning(): boolean
  /** Sends a signal; resolves once the process has ended. What follows it starts by itself. */
  kill(signal: 'SIGKILL' | 'SIGTERM'): Promise<void>
  /** Ends it for good. */
  close(): Promise<void>
}

/** A process that ended without a signal from the test. */
export interface Crash {
  role: string
  at: number
  code: number | null
  /** False when it ended while it started: its database may have been away. */
  wasRunning: boolean
}

export function superviseReplica(options: {
  role: Replica['role']
  env: Record<string, string>
  /** Everything that its processes write goes here. */
  logFile: string
  crashes: Crash[]
}): Replica {
  const { role, env, logFile, crashes } = options
  const log = createWriteStream(logFile, { flags: 'a' })
  let child: ChildProcess | undefined
  let url: string | null = null
  let isRunning = false
  let isTold = false
  let isClosing = false
  let ended: Promise<void> = Promise.resolve()

  function run(): Promise<void> {
    isTold = false
    const started = spawn(process.execPath, [entry, role], {
      env: { ...compiledOnce, WARM_POOL: '0', ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    child = started
    let line = ''
    started.stdout.on('data', (chunk: Buffer) => {
      if (isRunning || started !== child) return
      line += chunk.toString()
      const found = line.split('\n').find((text) => text.includes('"msg":"Chowder is running as') && text.endsWith('}'))
      line = line.slice(line.lastIndexOf('\n') + 1)
      if (!found) return
      url = (JSON.parse(found) as { url?: string }).url ?? null
      isRunning = true
    })
    for (const stream of [started.stdout, started.stderr]) stream.pipe(log, { end: false })
    return new Promise((resolve) => {
      started.once('exit', (code) => {
        if (!isTold) crashes.push({ role, at: Date.now(), code, wasRunning: isRunning })
        isRunning = false
        url = null
        resolve()
      })
    })
  }

  const supervision = (async () => {
    while (!isClosing) {
      ended = run()
      await ended
      if (!isClosing) await sleep(restartAfterMs)
    }
    log.end()
  })()

  async function kill(signal: 'SIGKILL' | 'SIGTERM'): Promise<void> {
    isTold = true
    child?.kill(signal)
    const message = `a ${role} did not end within ${exitTimeoutMs} ms of ${signal}`
    await pTimeout(ended, { milliseconds: exitTimeoutMs, message }).catch((error: unknown) => {
      child?.kill('SIGKILL')
      throw error
    })
  }

  return {
    role,
    url: () => url,
    isRunning: () => isRunning,
    kill,
    async close() {
      isClosing = true
      await kill('SIGKILL')
      await supervision
    },
  }
}
