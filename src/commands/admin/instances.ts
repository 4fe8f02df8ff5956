import { and, desc, eq } from 'drizzle-orm'
import { findOrganization } from '#api/organization/operator.ts'
import type { Db } from '#database/client.ts'
import { events, type Instance, instances, organizations } from '#database/schema.ts'
import { shownMessage } from '#instances/failure-message.ts'
import {
  hasStatus,
  type InstanceStatus,
  instanceStatuses,
  isNotTerminated,
  publicStatus,
  shownStep,
} from '#instances/status.ts'
import { isId } from '#platform/ids.ts'
import { toMicroseconds } from '#platform/timestamps.ts'
import { type Command, shortTime, table } from './command.ts'
import { eventLine, toEventData } from './trace.ts'

/** Too long a list is useless on a terminal; it says when it is cut. */
const maxListed = 1000
const shownEvents = 20

interface Owned {
  instance: Instance
  organization: string
}

const toData = ({ instance, organization }: Owned) => ({
  id: instance.id,
  name: instance.name,
  organization_id: instance.organizationId,
  organization,
  status: publicStatus(instance),
  step: shownStep(instance),
  error_message: shownMessage(instance.errorMessage, true),
  openclaw_version: instance.openclawVersion,
  model_provider: instance.modelProvider,
  sandbox_driver: instance.sandboxDriver,
  created_at: toMicroseconds(instance.createdAt),
})

const headings = ['ID', 'NAME', 'ORGANIZATION', 'STATUS', 'STEP', 'DRIVER', 'CREATED', 'ERROR'] as const

const firstLine = (text: string | null): string => text?.split('\n')[0]?.slice(0, 100) ?? ''

const toLine = (row: Owned): string[] => [
  row.instance.id,
  row.instance.name,
  row.organization,
  publicStatus(row.instance),
  shownStep(row.instance) ?? '–',
  row.instance.sandboxDriver,
  shortTime(row.instance.createdAt),
  firstLine(shownMessage(row.instance.errorMessage, true)),
]

function readStatus(text: string): InstanceStatus {
  const status = instanceStatuses.find((known) => known === text)
  if (!status) {
    throw new Error(`There is no status ${JSON.stringify(text)}. Use one of: ${instanceStatuses.join(', ')}.`)
  }
  return status
}

const selectOwned = (db: Db) =>
  db
    .select({ instance: instances, organization: organizations.name })
    .from(instances)
    .innerJoin(organizations, eq(organizations.id, instances.organizationId))

/** Finds an instance by its id, or by its name if only one unterminated instance has it. */
async function findInstance(db: Db, idOrName: string): Promise<Owned> {
  const isMeant = isId(idOrName) ? eq(instances.id, idOrName) : and(eq(instances.name, idOrName), isNotTerminated)
  const [found, other] = await selectOwned(db).where(isMeant).limit(2)
  if (!found) {
    throw new Error(`There is no instance ${JSON.stringify(idOrName)}. npm run admin -- list-instances shows all.`)
  }
  if (!other) return found
  throw new Error(`More than one instance is called ${JSON.stringify(idOrName)}. Give the id: list-instances shows it.`)
}

/** The part of the row for the operator: no configuration, and no secret. */
function details(row: Owned) {
  const { instance } = row
  return {
    ...toData(row),
    desired_state: instance.desiredState,
    generation: instance.generation,
    observed_generation: instance.observedGeneration,
    attempts: instance.attempts,
    next_attempt_at: toMicroseconds(instance.nextAttemptAt),
    lease_token: instance.leaseToken,
    lease_until: toMicroseconds(instance.leaseUntil),
    sandbox_id: instance.sandboxId,
    endpoint: instance.endpoint,
    ready_at: instance.readyAt && toMicroseconds(instance.readyAt),
    updated_at: toMicroseconds(instance.updatedAt),
    terminated_at: instance.terminatedAt && toMicroseconds(instance.terminatedAt),
  }
}

const cell = (value: unknown): string => {
  if (value === null) return '–'
  return typeof value === 'object' ? JSON.stringify(value) : String(value)
}

export const instanceCommands: Readonly<Record<string, Command>> = {
  'list-instances': {
    parameters: [],
    summary: 'the instances of all organizations or of one, newest first; terminated ones only by their status',
    options: ['org', 'status'],
    async run({ db, options: { org, status } }) {
      const owner = org === undefined ? undefined : (await findOrganization(db, org)).id
      const rows = await selectOwned(db)
        .where(
          and(
            owner === undefined ? undefined : eq(instances.organizationId, owner),
            status === undefined ? isNotTerminated : hasStatus[readStatus(status)],
          ),
        )
        .orderBy(desc(instances.createdAt), desc(instances.id))
        .limit(maxListed + 1)
      const listed = rows.slice(0, maxListed)
      const cut =
        rows.length > maxListed ? `\n\nThese are the newest ${maxListed}. Narrow the list by --org, --status.` : ''
      const text = listed.length > 0 ? table(headings, listed.map(toLine)) + cut : 'There is no such instance.'
      return { text, data: listed.map(toData) }
    },
  },
  show: {
    parameters: ['<instance>'],
    summary: 'its row, its lease and its latest events',
    async run({ db, words: [idOrName = ''] }) {
      const found = await findInstance(db, idOrName)
      const shown = details(found)
      const latest = await db
        .select()
        .from(events)
        .where(eq(events.instanceId, found.instance.id))
        .orderBy(desc(events.id))
        .limit(shownEvents)
      const rows = Object.entries(shown).map(([name, value]) => [name, cell(value)])
      const text = `${table(['FIELD', 'VALUE'], rows)}\n\n${latest.reverse().map(eventLine).join('\n')}`
      return { text, data: { ...shown, events: latest.map(toEventData) } }
    },
  },
}
