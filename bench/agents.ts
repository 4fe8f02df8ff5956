import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { installRelease } from '#openclaw/release/install.ts'
import { defaultRelease } from '#openclaw/releases.ts'
import { makeTemporaryDataDir, startChowder } from '../demo/chowder-process.ts'
import { type Fact, type Figure, fact, figure, median } from './figures.ts'
import { connect, type Tenant } from './tenant.ts'

const pollMs = 100
/** Only on a machine that never did. */
const installTimeoutMs = 15 * 60_000

/** Runs `act` beside a whole Chowder of its own, with real agents. */
export async function withChowder<T>(
  env: Record<string, string>,
  report: (text: string) => void,
  act: (chowder: { tenant: Tenant; dataDir: string }) => Promise<T>,
): Promise<T> {
  const { path: dataDir, remove } = await makeTemporaryDataDir('chowder-bench-')
  try {
    const signal = AbortSignal.timeout(installTimeoutMs)
    await installRelease({ dataDir, release: defaultRelease, progress: report, signal })
    report('starting Chowder')
    const chowder = await startChowder({
      role: 'all',
      dataDir,
      logFile: join(dataDir, 'chowder.log'),
      // Many agents are looked at ten times in a second.
      env: {
        RATE_LIMIT_PER_MINUTE: '0',
        WARM_POOL: '0',
        ...env,
      },
    })
    try {
      return await act({ tenant: await connect(chowder.url), dataDir })
    } finally {
      await chowder.stop('SIGINT')
    }
  } finally {
    await remove()
  }
}

/** Waits until it is so. Throws with `what` after the time, and what `isSo` throws. */
export async function until(what: string, timeoutMs: number, isSo: () => Promise<boolean>): Promise<void> {
  const deadline = performance.now() + timeoutMs
  while (!(await isSo())) {
    if (performance.now() > deadline) throw new Error(`${what}: not within ${timeoutMs / 1000} s`)
    await sleep(pollMs)
  }
}

/** Until an agent has the status. Throws its own words when it is in error. */
export const untilAgentIs = (tenant: Tenant, id: string, wanted: string, timeoutMs: number): Promise<void> =>
  until(wanted, timeoutMs, async () => {
    const { status } = await tenant.call<{ status: string }>('GET', `/v1/instances/${id}/status`)
    if (status === 'error') {
      const { error_message } = await tenant.call<{ error_message: string }>('GET', `/v1/instances/${id}`)
      throw new Error(`the instance is in error: ${error_message}`)
    }
    return status === wanted
  })

/** Creates an agent and waits until it runs; returns its id. */
export async function createAgent(tenant: Tenant, timeoutMs: number, fields: object = {}): Promise<string> {
  const { id } = await tenant.call<{ id: string }>('POST', '/v1/instances', { name: 'agent', ...fields })
  await untilAgentIs(tenant, id, 'running', timeoutMs)
  return id
}

/** Whether a gateway's own path answers 2xx on this port of loopback. */
export const answers = (port: number, path: string): Promise<boolean> =>
  fetch(`http://127.0.0.1:${port}${path}`).then(
    (answer) => answer.ok,
    () => false,
  )

/** How long it takes, in seconds. */
export async function secondsOf(act: () => Promise<unknown>): Promise<number> {
  const startedAt = performance.now()
  await act()
  return (performance.now() - startedAt) / 1000
}

/** Seconds by Chowder and by hand, each of which returns them, in turn; the one that is first changes. */
export async function inTurn(
  name: string,
  bar: Figure['bar'],
  count: number,
  report: (text: string) => void,
  chowder: (round: number) => Promise<number>,
  limit: (round: number) => Promise<number>,
): Promise<Figure> {
  const seconds = { chowder: [] as number[], limit: [] as number[] }
  for (let round = 1; round <= count; round += 1) {
    report(`${name} by Chowder and by hand, round ${round} of ${count}`)
    const sides = [
      async () => void seconds.limit.push(await limit(round)),
      async () => void seconds.chowder.push(await chowder(round)),
    ]
    for (const side of round % 2 === 1 ? sides : sides.reverse()) await side()
  }
  // Minutes apart, and few: the medians tell more than the ratios of neighbours.
  return figure(name, 's', bar, [{ chowder: median(seconds.chowder), limit: median(seconds.limit) }])
}

const together = 20
const togetherTimeoutMs = 15 * 60_000

/** How an agent is started by hand, and removed, by a name; and how one of Chowder's is deleted, to its end. */
export interface Hand {
  /**
   * Resolves once its gateway is ready. One that ends before is started again, and counted by `ended`. Rejects after the
   * time.
   */
  start(name: string, limit: { timeoutMs: number; ended(): void }): Promise<unknown>
  /** Also one that did not become ready. */
  remove(name: string): Promise<unknown>
  deleteAgent(id: string): Promise<unknown>
}

/**
 * Many agents that are asked for at once until all of them run, beside as many by hand. On a machine that is busy enough
 * OpenClaw ends some of them while they start: those are started again, on both sides, and counted. By hand all start at
 * the same time, so it may be that none of them ever gets ready. They get the time that Chowder took: the figure has
 * no limit then, and says how many were ready.
 */
export async function measureTogether(
  tenant: Tenant,
  { start, remove, deleteAgent }: Hand,
  report: (text: string) => void,
): Promise<(Fact | Figure)[]> {
  const names = Array.from({ length: together }, (_, index) => `bench-together-${index}`)
  const ended = { chowder: 0, hand: 0 }
  report(`${together} agents at once by Chowder`)
  const ids: string[] = []
  const chowder = await secondsOf(() =>
    Promise.all(
      names.map(async (name) => {
        const { id } = await tenant.call<{ id: string }>('POST', '/v1/instances', { name })
        ids.push(id)
        await until('running', togetherTimeoutMs, async () => {
          const { status } = await tenant.call<{ status: string }>('GET', `/v1/instances/${id}/status`)
          if (status !== 'error') return status === 'running'
          ended.chowder += 1
          await tenant.call('POST', `/v1/instances/${id}/start`)
          return false
        })
      }),
    ),
  )
  await Promise.all(ids.map(deleteAgent))

  const timeoutMs = chowder * 1000
  report(`${together} agents at once by hand, for ${Math.round(timeoutMs / 1000)} s at most`)
  let ready = 0
  const limit = await secondsOf(() =>
    Promise.all(
      names.map(async (name) => {
        const countEnd = () => {
          ended.hand += 1
        }
        try {
          await start(name, { timeoutMs, ended: countEnd })
          ready += 1
        } catch (error) {
          report(error instanceof Error ? error.message : String(error))
        }
      }),
    ),
  )
  await Promise.all(names.map(remove))
  const name = `${together} creates at once`
  return [
    ready === together ? figure(name, 's', { atMost: 1.15 }, [{ chowder, limit }]) : fact(name, chowder, 's'),
    ...(ready === together ? [] : [fact('  by hand, ready in that time', ready, `of ${together}`)]),
    fact('  of them in error, and started again', ended.chowder, `(by hand ${ended.hand})`),
  ]
}
