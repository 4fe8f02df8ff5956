import { and, asc, desc, eq, gte, inArray, lte, or, type SQL } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type Event, events, instances } from '#database/schema.ts'
import { isId } from '#platform/ids.ts'
import { toMicroseconds } from '#platform/timestamps.ts'
import type { Command } from './command.ts'

/** Maximum events: the latest of an instance, the first of a request. */
const maxEvents = 500
/** The instances that one request changed, such as all those of a provider whose key it replaced. */
const maxInstances = 100

export const toEventData = (row: Event) => ({
  id: row.id,
  at: toMicroseconds(row.createdAt),
  type: row.type,
  instance_id: row.instanceId,
  subject: row.subject,
  actor: { type: row.actorType, id: row.actorId },
  request_id: row.requestId,
  from_status: row.fromStatus,
  to_status: row.toStatus,
  generation: row.generation,
  reason: row.reason,
})

const statusChange = ({ fromStatus, toStatus }: Event): string | null => {
  if (toStatus === null || fromStatus === toStatus) return null
  return fromStatus === null ? toStatus : `${fromStatus} → ${toStatus}`
}

/** One line: time, event, instance and intent, change of status, actor and reason. */
export function eventLine(row: Event): string {
  const actor = row.actorId === null ? row.actorType : `${row.actorType} ${row.actorId}`
  return [
    row.createdAt.toISOString().replace('T', ' '),
    row.type.padEnd(24),
    row.instanceId,
    row.generation === null ? null : `intent ${row.generation}`,
    row.subject,
    statusChange(row),
    `by ${actor}`,
    row.requestId === null ? null : `request ${row.requestId}`,
    row.reason === null ? null : `(${row.reason.replaceAll('\n', ' ')})`,
  ]
    .filter((part) => part !== null)
    .join('  ')
}

/** The events of a request, and those that followed from its intents until the next intent of the same instance. */
async function eventsOfRequest(db: Db, requestId: string): Promise<Event[]> {
  const own = await db
    .select()
    .from(events)
    .where(eq(events.requestId, requestId))
    .orderBy(asc(events.id))
    .limit(maxEvents)
  const intents = new Map<string, { from: number; generations: Set<number> }>()
  for (const { id, instanceId, generation } of own) {
    if (instanceId === null || generation === null) continue
    const intent = intents.get(instanceId) ?? { from: id, generations: new Set() }
    intent.generations.add(generation)
    intents.set(instanceId, intent)
  }
  const followed = [...intents]
    .slice(0, maxInstances)
    .map(([instanceId, { from, generations }]): SQL | undefined =>
      and(eq(events.instanceId, instanceId), gte(events.id, from), inArray(events.generation, [...generations])),
    )
  if (followed.length === 0) return own
  const later = await db
    .select()
    .from(events)
    .where(or(...followed))
    .orderBy(asc(events.id))
    .limit(maxEvents)
  return [...new Map([...own, ...later].map((event) => [event.id, event])).values()].sort((a, b) => a.id - b.id)
}

async function eventsOfInstance(db: Db, id: string): Promise<Event[]> {
  const latest = await db
    .select()
    .from(events)
    .where(eq(events.instanceId, id))
    .orderBy(desc(events.id))
    .limit(maxEvents)
  return latest.reverse()
}

/** The current steps of workers, one line for each instance with an attempt. */
async function stepsNow(db: Db, traced: readonly Event[]): Promise<string[]> {
  const ids = [...new Set(traced.map(({ instanceId }) => instanceId).filter((id) => id !== null))].slice(
    0,
    maxInstances,
  )
  if (ids.length === 0) return []
  const now = new Date()
  const working = await db
    .select({ id: instances.id, step: instances.step, attempts: instances.attempts })
    .from(instances)
    .where(and(inArray(instances.id, ids), lte(instances.observedGeneration, instances.generation)))
  return working
    .filter(({ step }) => step !== null)
    .map(
      ({ id, step, attempts }) =>
        `${now.toISOString().replace('T', ' ')}  now at step ${step}  ${id}  attempt ${attempts}`,
    )
}

export const traceCommands: Readonly<Record<string, Command>> = {
  trace: {
    parameters: ['<request id|instance id>'],
    summary: 'one time line of a request or an instance: calls, intents, attempts, restarts, steps with their times',
    async run({ db, words: [id = ''] }) {
      const ofRequest = await eventsOfRequest(db, id)
      const traced = ofRequest.length > 0 || !isId(id) ? ofRequest : await eventsOfInstance(db, id)
      if (traced.length === 0) {
        throw new Error(
          `No event has the request or the instance ${JSON.stringify(id)}. Events are kept for 90 days; ` +
            'calls that change nothing are in the log alone: search it for the id.',
        )
      }
      const steps = await stepsNow(db, traced)
      return { text: [...traced.map(eventLine), ...steps].join('\n'), data: traced.map(toEventData) }
    },
  },
}
