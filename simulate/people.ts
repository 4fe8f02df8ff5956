import { setTimeout as sleep } from 'node:timers/promises'
import { busyness, createdADay, diesADay, isRegionAway, type PartOfDay, partOfDay, turnsADay } from './day.ts'
import type { Customer, Fleet } from './fleet.ts'

const tickMs = 200
/** How long a customer waits for an agent that it has created, in s. */
const patience = 600
const longestWait = 60

/** Something that a customer asked for. */
export interface Asked {
  kind: 'create' | 'delete' | 'turn'
  part: PartOfDay
  /** A create: until it ran; a turn: until its answer; a delete: until it was accepted. */
  ms: number
  /** Why it was not done; null otherwise. */
  failure: string | null
}

const anyOf = <T>(from: readonly T[]): T | undefined => from[Math.floor(Math.random() * from.length)]

/** How often something is to happen until now, at a rate that changes: whole times, the rest is kept for the next. */
function createRate(): (perSecond: number, seconds: number) => number {
  let owed = 0
  return (perSecond, seconds) => {
    owed += perSecond * seconds
    const times = Math.floor(owed)
    owed -= times
    return times
  }
}

/**
 * Has customers create, use and delete agents, gateways end, and a region go away and come back, as a day has it, until
 * the day is over or the signal is aborted. Resolves once all that was asked for is answered.
 */
export async function liveThroughDay(
  { customers, tell }: Fleet,
  { timeNow, daySeconds, signal }: { timeNow(): number; daySeconds: number; signal: AbortSignal },
): Promise<Asked[]> {
  const instances = customers.reduce((sum, { instances }) => sum + instances.length, 0)
  const asked: Asked[] = []
  const open = new Set<Promise<void>>()
  let isAway = false

  function ask(kind: Asked['kind'], act: () => Promise<unknown>): void {
    const part = partOfDay(timeNow())
    const startedAt = performance.now()
    const note = (failure: string | null) => void asked.push({ kind, part, ms: performance.now() - startedAt, failure })
    const asking = act().then(
      () => note(null),
      (error: Error) => note(error.message),
    )
    open.add(asking)
    void asking.then(() => open.delete(asking))
  }

  async function create({ call, instances: own }: Customer): Promise<void> {
    const { id } = await call<{ id: string }>('POST', '/v1/instances', { name: 'simulated' })
    for (let waited = 0; waited < patience; waited += longestWait) {
      const path = `/v1/instances/${id}/status?wait=running&timeout=${longestWait}`
      const { status } = await call<{ status: string }>('GET', path)
      if (status === 'running') return void own.push(id)
      if (status !== 'provisioning') throw new Error(`a created instance is ${status}`)
    }
    throw new Error(`a created instance did not run within ${patience} s`)
  }

  const remove = async ({ call, instances: own }: Customer) => {
    const [id] = own.splice(Math.floor(Math.random() * own.length), 1)
    if (id !== undefined) await call('DELETE', `/v1/instances/${id}`)
  }

  const talk = async ({ call, instances: own }: Customer) => {
    const id = anyOf(own)
    if (id !== undefined) await call('POST', `/v1/instances/${id}/responses`, { model: 'openclaw', input: 'Hello' })
  }

  const rates = { create: createRate(), delete: createRate(), turn: createRate(), end: createRate() }
  let before = performance.now()
  while (timeNow() < 1 && !signal.aborted) {
    await sleep(tickMs)
    const now = performance.now()
    const seconds = (now - before) / 1000
    before = now
    const time = timeNow()
    const perSecond = (ADay: number) => (ADay * instances) / daySeconds
    const busy = busyness(time)
    const customer = () => anyOf(customers) as Customer
    const owner = () => anyOf(customers.filter(({ instances }) => instances.length > 0)) ?? customer()
    for (let n = rates.create(perSecond(createdADay) * busy, seconds); n > 0; n -= 1) {
      const of = customer()
      ask('create', () => create(of))
    }
    for (let n = rates.delete(perSecond(createdADay) * busy, seconds); n > 0; n -= 1) {
      const of = owner()
      ask('delete', () => remove(of))
    }
    for (let n = rates.turn(perSecond(turnsADay) * busy, seconds); n > 0; n -= 1) {
      const of = owner()
      ask('turn', () => talk(of))
    }
    const ends = rates.end(perSecond(diesADay), seconds)
    if (ends > 0) await tell({ kind: 'end', count: ends })
    if (isRegionAway(time) !== isAway) {
      isAway = !isAway
      await tell({ kind: 'region', isAway })
    }
  }
  await Promise.all(open)
  return asked
}
