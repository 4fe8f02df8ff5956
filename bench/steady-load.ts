import { setTimeout as sleep } from 'node:timers/promises'
import { Agent, request } from 'undici'
import { answerMessages } from './program.ts'

/** Requests that are sent in turn at a steady rate, however long the answers take. */
export interface SteadyLoad {
  port: number
  requests: { method: 'GET' | 'POST'; path: string; headers: Record<string, string>; body?: string }[]
  perSecond: number
  ms: number
  /** What says that the server lives. */
  healthPath: string
}

export interface SteadyMeasured {
  p50Ms: number
  p99Ms: number
  /** Of a GET of that path, which is asked as often. */
  healthP99Ms: number
  /** Answers other than 200, and requests without one. */
  failed: number
}

const quantile = (tookMs: number[], share: number) => {
  const sorted = tookMs.sort((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0
}

/** A request counts from the time at which it was due: those that wait for a server that stands still count too. */
answerMessages(async ({ port, requests, perSecond, ms, healthPath }: SteadyLoad): Promise<SteadyMeasured> => {
  const dispatcher = new Agent({ connections: 256, headersTimeout: 30_000, bodyTimeout: 30_000 })
  const tookMs: number[] = []
  const healthMs: number[] = []
  let failed = 0

  async function send(one: SteadyLoad['requests'][number], dueAt: number, times: number[]): Promise<void> {
    const { path, ...options } = one
    try {
      const { statusCode, body } = await request(`http://127.0.0.1:${port}${path}`, { ...options, dispatcher })
      await body.dump()
      if (statusCode !== 200) failed += 1
    } catch {
      failed += 1
    }
    times.push(performance.now() - dueAt)
  }

  const health = { method: 'GET', path: healthPath, headers: {} } as const
  const open: Promise<void>[] = []
  const startedAt = performance.now()
  for (let sent = 0; ; sent += 1) {
    const dueAt = startedAt + (sent * 1000) / perSecond
    if (dueAt - startedAt >= ms) break
    await sleep(Math.max(0, dueAt - performance.now()))
    const one = requests[sent % requests.length]
    if (one) open.push(send(one, dueAt, tookMs))
    open.push(send(health, dueAt, healthMs))
  }
  await Promise.all(open)
  await dispatcher.close()
  return {
    p50Ms: quantile(tookMs, 0.5),
    p99Ms: quantile(tookMs, 0.99),
    healthP99Ms: quantile(healthMs, 0.99),
    failed,
  }
})
