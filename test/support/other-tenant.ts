import { setTimeout as sleep } from 'node:timers/promises'
import { type Api, say, sessionPath } from './api-client.ts'
import { until } from './until.ts'

/** Everything that another tenant saw since the last call of `take`. */
export interface Seen {
  reads: number
  turns: number
  /** The longest answer of `/healthz`, in ms. */
  slowestHealthMs: number
  /** The messages of the first requests that failed. */
  failures: string[]
}

const enough = { reads: 100, turns: 20 }
const timeoutMs = 5 * 60_000
const mostFailures = 20
const pauseMs = { reads: 100, turns: 1000, health: 200 }
const none = (): Seen => ({ reads: 0, turns: 0, slowestHealthMs: 0, failures: [] })

/** Has a tenant read its instance, take turns with its agent and ask `/healthz` again and again, until it is closed. */
export function watchTenant(client: Api, id: string) {
  let seen = none()
  let isOver = false

  async function again(ms: number, act: () => Promise<void>) {
    while (!isOver) {
      const { failures } = seen
      await act().catch(({ message }: Error) => failures.length < mostFailures && failures.push(message))
      await sleep(ms)
    }
  }
  async function get(path: string): Promise<void> {
    const { status, body } = await client.get(path)
    if (status !== 200) throw new Error(`${path}: ${status} ${JSON.stringify(body)}`)
  }
  async function health(): Promise<void> {
    const startedAt = performance.now()
    await get('/healthz')
    seen.slowestHealthMs = Math.max(seen.slowestHealthMs, performance.now() - startedAt)
  }
  async function read(): Promise<void> {
    await get(`/v1/instances/${id}`)
    seen.reads += 1
  }
  async function turn(): Promise<void> {
    await say(client, sessionPath(id, 'other-tenant'), 'Hello')
    seen.turns += 1
  }
  const loops = [again(pauseMs.health, health), again(pauseMs.reads, read), again(pauseMs.turns, turn)]

  return {
    /** Returns what was seen since the last call. */
    take(): Seen {
      const taken = seen
      seen = none()
      return taken
    },
    /** Waits until enough was seen since the last `take`. */
    enough: () =>
      until(
        'enough reads and turns of the other tenant',
        () => seen.reads >= enough.reads && seen.turns >= enough.turns,
        timeoutMs,
      ),
    async close() {
      isOver = true
      await Promise.all(loops)
    },
  }
}
