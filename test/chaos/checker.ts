import type pg from 'pg'
import { publicStatus } from '#instances/status.ts'
import type { CloudEvent } from '../support/fake-cloud.ts'
import { present } from '../support/present.ts'
import type { Attempt, Journal, Operation } from './client.ts'

/** The violations that a run counts. Each count is 0 in a run that passes. */
export const faultsOfTrust = [
  'lost',
  'leaked',
  'doubled',
  'over the limit',
  'illegal transition',
  'change without its event',
  'wrong conflict',
  'secret in the clear',
  'undocumented answer',
  'crashed process',
  'found by the doctor',
] as const

export interface Violation {
  what: (typeof faultsOfTrust)[number]
  instanceId: string | null
  /** For people: what was found, and what should have been. */
  why: string
}

interface EventRow {
  id: number
  instance_id: string
  organization_id: string
  type: string
  request_id: string | null
  from_status: string | null
  to_status: string
  created_at: Date
}

interface InstanceRow {
  id: string
  organization_id: string
  name: string
  status: ReturnType<typeof publicStatus>
  isSettled: boolean
  desired_state: 'running' | 'stopped' | 'terminated'
  error_message: string | null
}

async function readInstances(pool: pg.Pool): Promise<InstanceRow[]> {
  const { rows } = await pool.query(
    `SELECT id, organization_id, name, desired_state, generation, observed_generation, ready_at, error_message FROM instances`,
  )
  return rows.map(({ generation, observed_generation, ready_at, ...row }) => ({
    ...row,
    isSettled: generation === observed_generation,
    status: publicStatus({
      desiredState: row.desired_state,
      generation,
      observedGeneration: observed_generation,
      readyAt: ready_at,
    }),
  }))
}

/** The history of every instance, in the order in which it was committed. */
async function readHistories(pool: pg.Pool): Promise<Map<string, EventRow[]>> {
  const { rows } = await pool.query<EventRow>(
    `SELECT id::int8::text::numeric::float8 AS id, instance_id, organization_id, type, request_id, from_status, to_status,
            created_at
     FROM events WHERE instance_id IS NOT NULL AND to_status IS NOT NULL ORDER BY events.id`,
  )
  return Map.groupBy(rows, (row) => row.instance_id)
}

/** The valid successors of each status. A status may also follow itself. */
const legal: Readonly<Record<string, readonly string[]>> = {
  provisioning: ['running', 'error', 'terminated'],
  running: ['provisioning', 'error', 'stopped', 'terminated'],
  stopped: ['provisioning', 'terminated'],
  error: ['provisioning', 'terminated'],
  terminated: [],
}
/** The events that may follow the end of an instance: its destruction, and the failures of that. */
const afterTermination = new Set(['instance.destroyed', 'instance.attempt_failed', 'instance.due'])

/**
 * I2, I5: each instance's events are a chain from its creation to the status it has now, every link of it legal, and
 * nothing but its destruction comes after its termination.
 */
export async function findIllegalTransitions(pool: pg.Pool): Promise<Violation[]> {
  const found: Violation[] = []
  const histories = await readHistories(pool)
  for (const { id, status } of await readInstances(pool)) {
    const report = (why: string) => found.push({ what: 'illegal transition', instanceId: id, why })
    let before: string | null = null
    for (const event of histories.get(id) ?? []) {
      const { from_status: from, to_status: to, type } = event
      if (from !== before) report(`event ${event.id} ${type} comes from ${from}, after an event that led to ${before}`)
      else if (from === null && to !== 'provisioning') report(`it began as ${to}`)
      else if (from !== null && from !== to && !legal[from]?.includes(to)) report(`${from} became ${to} by ${type}`)
      else if (from === 'terminated' && !afterTermination.has(type)) report(`${type} after its termination`)
      before = to
    }
    if (before !== status) report(`its history ends as ${before}, and it is ${status}`)
  }
  return found
}

/**
 * I3: at no moment had an organization more instances than its limit, by its history: creations and terminations are
 * recorded under the organization's lock. Its counter agrees with its rows. `limits` of null are none.
 */
export async function findOverLimit(pool: pg.Pool, limits: ReadonlyMap<string, number | null>): Promise<Violation[]> {
  const found: Violation[] = []
  const events = [...(await readHistories(pool)).values()].flat().sort((a, b) => a.id - b.id)
  for (const [organizationId, limit] of limits) {
    let count = 0
    for (const { organization_id: of, from_status: from, to_status: to, id, instance_id: instanceId } of events) {
      if (of !== organizationId) continue
      if (from === null) count += 1
      else if (from !== 'terminated' && to === 'terminated') count -= 1
      if (limit !== null && count > limit && from === null)
        found.push({ what: 'over the limit', instanceId, why: `event ${id} made ${count} instances of ${limit}` })
    }
  }
  const { rows } = await pool.query(
    `SELECT o.id, o.instance_count, count(i.id)::int AS counted FROM organizations o
     LEFT JOIN instances i ON i.organization_id = o.id AND i.desired_state <> 'terminated'
     GROUP BY o.id HAVING o.instance_count <> count(i.id)`,
  )
  for (const { id, instance_count, counted } of rows)
    found.push({
      what: 'over the limit',
      instanceId: null,
      why: `the counter of organization ${id} says ${instance_count}, it has ${counted} instances`,
    })
  return found
}

/** A sandbox as its platform shows it. */
export interface SeenSandbox {
  id: string
  isRunning: boolean
  /** Whether its gateway answers; left out where that is not asked. */
  isHealthy?: boolean
}

/**
 * I1, and that every intent came true, once all should be at rest: each row is settled and its sandbox as it says, and
 * there is no other sandbox. An `error` with its reason is an end too, and then nothing runs.
 */
export async function findUnsettled(pool: pg.Pool, sandboxes: readonly SeenSandbox[]): Promise<Violation[]> {
  const found: Violation[] = []
  const seen = new Map(sandboxes.map((sandbox) => [sandbox.id, sandbox]))
  if (seen.size < sandboxes.length)
    found.push({ what: 'doubled', instanceId: null, why: 'the platform shows two sandboxes of one instance' })
  for (const row of await readInstances(pool)) {
    const { id, status } = row
    const lost = (why: string) => found.push({ what: 'lost', instanceId: id, why })
    const leaked = (why: string) => found.push({ what: 'leaked', instanceId: id, why })
    const sandbox = seen.get(id)
    seen.delete(id)
    if (!row.isSettled)
      lost(`it should be ${row.desired_state} and is not settled: ${row.error_message ?? 'no reason'}`)
    else if (status === 'running' && !sandbox?.isRunning) lost('it is running without a sandbox that runs')
    else if (status === 'running' && sandbox?.isHealthy === false) lost('it is running and its gateway does not answer')
    else if (status === 'error' && row.error_message === null) lost('it is in error without a reason')
    else if (status === 'terminated' && sandbox) leaked('it is terminated and its sandbox is still there')
    else if ((status === 'stopped' || status === 'error') && sandbox?.isRunning) leaked(`it is ${status}, and runs`)
  }
  for (const id of seen.keys()) found.push({ what: 'leaked', instanceId: id, why: 'a sandbox without an instance' })
  return found
}

/**
 * I1 at every moment, by the platform's own history: an instance had one sandbox at a time, with one gateway, was never
 * changed by two at once, and lost its sandbox only when it was terminated.
 */
export async function findDoubled(
  pool: pg.Pool,
  history: readonly CloudEvent[],
  overlaps: readonly { id: string; callers: readonly [string, string] }[],
): Promise<Violation[]> {
  const found: Violation[] = []
  const rows = new Map((await readInstances(pool)).map((row) => [row.id, row]))
  const states = new Map<string, { exists: boolean; runs: boolean; made: number; destroyed: number }>()
  for (const { id, what } of history) {
    const state = states.get(id) ?? { exists: false, runs: false, made: 0, destroyed: 0 }
    states.set(id, state)
    const doubled = (why: string) => found.push({ what: 'doubled', instanceId: id, why })
    if (what === 'created') {
      state.made += 1
      if (state.exists || state.made > state.destroyed + 1) doubled('a second sandbox was made')
      state.exists = true
    } else if (what === 'started') {
      if (state.runs) doubled('a second gateway was started')
      state.runs = true
    } else if (what === 'destroyed') {
      state.destroyed += 1
      state.exists = false
      const desired = rows.get(id)?.desired_state
      if (desired && desired !== 'terminated')
        found.push({ what: 'lost', instanceId: id, why: `its sandbox was destroyed, and it should be ${desired}` })
    } else state.runs = false
  }
  for (const { id, callers } of overlaps)
    found.push({ what: 'doubled', instanceId: id, why: `${callers.join(' and ')} were at its sandbox at once` })
  return found
}

const wasAccepted = ({ kind }: Operation, { status }: Attempt) =>
  status !== null && status < 300 && (kind !== 'create' || status === 201)

/** The first word of a name: renaming adds to it. */
const ownName = (name: string) => present(name.split('/')[0])

/**
 * What was accepted is there, as it was accepted last: instances, their states, names and configurations (I4 too: one
 * key gave one instance, and no request more than one). `configOf` is what a running gateway really has, null when
 * unknown.
 */
export async function findLost(
  pool: pg.Pool,
  journal: Journal,
  markerOf: (id: string) => string | null | undefined,
): Promise<Violation[]> {
  const found: Violation[] = []
  const rows = await readInstances(pool)
  const byId = new Map(rows.map((row) => [row.id, row]))
  const byName = Map.groupBy(rows, ({ name }) => ownName(name))
  for (const { id, states, names, markers } of journal.expected.values()) {
    const lost = (why: string) => found.push({ what: 'lost', instanceId: id, why })
    const row = byId.get(id)
    if (!row) {
      lost('it was accepted, and there is no such instance')
      continue
    }
    if (!states.has(row.desired_state)) lost(`it should be ${[...states].join(' or ')}, not ${row.desired_state}`)
    if (!names.has(row.name)) lost(`it should be named ${[...names].join(' or ')}, not ${row.name}`)
    const marker = row.status === 'running' ? markerOf(id) : undefined
    if (marker !== undefined && !markers.has(marker))
      lost(`its gateway should be configured with ${[...markers].join(' or ')}, not ${marker}`)
  }
  for (const { kind, name, idempotencyKey, attempts, instanceId } of journal.operations) {
    if (kind !== 'create') continue
    const made = byName.get(ownName(name)) ?? []
    const most = idempotencyKey === null ? attempts.length : 1
    if (made.length > most)
      found.push({
        what: 'doubled',
        instanceId,
        why: `${attempts.length} requests to create ${name} made ${made.length}`,
      })
  }
  return found
}

/** I6: each accepted mutation has an event of its kind that bears its request's id. */
export async function findUnrecorded(pool: pg.Pool, journal: Journal): Promise<Violation[]> {
  const { rows } = await pool.query<{ request_id: string; type: string }>(
    'SELECT request_id, type FROM events WHERE request_id IS NOT NULL',
  )
  const recorded = new Set(rows.map(({ request_id: requestId, type }) => `${requestId} ${type}`))
  const types = { configure: 'update', rename: 'update' } as Partial<Record<Operation['kind'], string>>
  return journal.operations.flatMap((operation) => {
    const { kind, attempts, instanceId } = operation
    if (kind === 'ask') return []
    // Of a repeated one only the first that was carried out changes anything, and its answer may be the one that was
    // lost.
    const isRepeat = attempts.length > 1
    return attempts
      .filter((attempt) => wasAccepted(operation, attempt) && !isRepeat)
      .filter(({ requestId }) => !recorded.has(`${requestId} instance.${types[kind] ?? kind}`))
      .map(({ requestId }) => ({
        what: 'change without its event' as const,
        instanceId,
        why: `${kind} was accepted in request ${requestId} and is not in the history`,
      }))
  })
}

/** How far apart the moment in an event and that of its commit may be, in ms. */
const commitMs = 1000

/**
 * F13: a refusal of a start or a stop names a status that the instance had between the request and its answer. Requests
 * during `disturbances` of the database are left out: nobody can say when what they met was committed.
 */
export async function findWrongConflicts(
  pool: pg.Pool,
  journal: Journal,
  disturbances: readonly { from: number; to: number }[],
): Promise<Violation[]> {
  const found: Violation[] = []
  const histories = await readHistories(pool)
  for (const { kind, instanceId, attempts } of journal.operations) {
    for (const { status, detail, sentAt, endedAt } of attempts) {
      const named = status === 409 ? /An instance that is (\w+) cannot be/.exec(detail ?? '')?.[1] : undefined
      if (named === undefined || instanceId === null) continue
      if (disturbances.some(({ from, to }) => from <= endedAt && to >= sentAt)) continue
      const events = histories.get(instanceId) ?? []
      const held = events.some(({ to_status: to, created_at: since }, at) => {
        const until = events[at + 1]?.created_at.getTime() ?? Number.POSITIVE_INFINITY
        return to === named && since.getTime() <= endedAt + commitMs && until >= sentAt - commitMs
      })
      if (!held)
        found.push({
          what: 'wrong conflict',
          instanceId,
          why: `${kind} was refused for ${named}, which it was not then`,
        })
    }
  }
  return found
}

const documented: Record<Operation['kind'], readonly number[]> = {
  create: [201, 402, 409],
  start: [200, 202, 409],
  stop: [200, 202, 409],
  configure: [200, 409, 502, 504, 507],
  rename: [200, 409],
  delete: [204],
  ask: [200, 409, 502, 503, 504],
}

/** Answers that no documented fault of ours or of the platform explains; a 404 for what was accepted is one. */
export function findUndocumented(journal: Journal): Violation[] {
  return journal.operations.flatMap(({ kind, instanceId, attempts }) =>
    attempts
      .filter(({ status, detail }) => {
        if (status === null || status === 503 || status === 429) return false
        return !documented[kind].includes(status) || (status < 300 && detail !== null)
      })
      .map(({ status, detail, requestId }) => ({
        what: 'undocumented answer' as const,
        instanceId,
        why: `${kind} was answered ${status} ${detail ?? ''} (request ${requestId})`,
      })),
  )
}
