import { and, desc, eq, inArray, isNull, ne, notExists, or, type SQL, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { ephemeralSessions } from '#database/response-schema.ts'
import {
  type Instance,
  installation,
  instances,
  type ModelProvider,
  organizations,
  providerKeys,
} from '#database/schema.ts'
import { changedBy } from '#history/record.ts'
import { explainTaken } from './external-id.ts'
import type { NewInstance } from './insert.ts'
import { raiseGeneration } from './intent.ts'
import { stateName } from './region-states.ts'
import { hasStatus, isNotTerminated, isRunningAndFree } from './status.ts'

/**
 * The organization of warm instances, which no customer has yet. It is the installation itself: it has neither an API
 * key nor a provider's key. Its row is made with the first warm instance.
 */
export const poolOrganizationId = '00000000-0000-7000-8000-0000706f6f6c' // `pool` in ASCII

/** The session of a warm instance's first turn. No session id of the API has such a key. */
export const warmSessionKey = (instanceId: string): string => `c-${instanceId.replaceAll('-', '')}`

/** How long after the hand-over the session of the first turn is deleted: that takes a second of a processor. */
const sessionEndsAt = sql`now() + interval '1 minute'`
/** Attempts to take a warm instance while other creates take them too. */
const maxAttempts = 5

/** The number of organizations of customers that are not deleted. */
export const countOrganizations = (db: Db): Promise<number> =>
  db.$count(organizations, and(isNull(organizations.deletedAt), ne(organizations.id, poolOrganizationId)))

/** Whether a row is a warm instance that can be given to a customer. */
const isWarm = and(eq(instances.organizationId, poolOrganizationId), isRunningAndFree, isNull(instances.busy))

/**
 * Gives a warm instance of the region that fits `wanted` to the organization, and counts it under the organization's limit. `rowOf`
 * returns the same row for another id, with what is sealed for that id. The instance keeps its id, sandbox, endpoint and
 * tokens, and is due for a worker that changes what differs. Null when no warm instance fits, or the organization may
 * not create one. Throws the errors of `explainTaken`.
 */
export async function takeWarmInstance(
  db: Db,
  wanted: NewInstance,
  rowOf: (id: string) => NewInstance,
  isHere: SQL | undefined,
): Promise<Instance | null> {
  const isFitting = and(fits(wanted), isHere)
  for (let attempt = 0; attempt < maxAttempts; attempt += 1) {
    const id = await findWarm(db, wanted.columns.modelProvider, isFitting)
    if (id === null) return null
    const row = rowOf(id)
    const { organizationId } = row
    const externalId = row.columns.externalId ?? null
    const taken =
      externalId === null
        ? await take(db, row, isFitting)
        : await explainTaken(db, organizationId, externalId, () => db.transaction((tx) => take(tx, row, isFitting)))
    if (taken) return taken
  }
  return null
}

/** The instances of the pool that a request fits, in SQL. Every other setting of a running agent can be changed. */
function fits({ organizationId, isolation, columns }: NewInstance): SQL | undefined {
  const ofOrganization = sql`(SELECT isolation FROM ${organizations} WHERE id = ${organizationId})`
  return and(
    isWarm,
    eq(instances.openclawVersion, columns.openclawVersion),
    eq(instances.isolation, isolation ?? ofOrganization),
  )
}

/** One of the provider if possible: another one needs a change of its configuration. */
async function findWarm(db: Db, provider: ModelProvider, isFitting: SQL | undefined): Promise<string | null> {
  const isOfProvider = sql`${eq(instances.modelProvider, provider)}`
  const [found] = await db
    .select({ id: instances.id })
    .from(instances)
    .where(isFitting)
    .orderBy(desc(isOfProvider), sql`random()`)
    .limit(1)
  return found?.id ?? null
}

/** Null when another create has taken the instance, or the organization may not create one. */
async function take(db: Db, row: NewInstance, isFitting: SQL | undefined): Promise<Instance | null> {
  const { id, organizationId, regionName, columns } = row
  const { sealedToken: _kept, ...asked } = columns
  const { instanceCount, instanceLimit } = organizations
  // All statements that change both rows lock the organizations first: another order would deadlock.
  const locked = db.$with('locked').as(
    db
      .select({ id: organizations.id })
      .from(organizations)
      .where(or(eq(organizations.id, organizationId), eq(organizations.id, poolOrganizationId)))
      .orderBy(organizations.id)
      .for('update'),
  )
  const warm = db.$with('warm').as(
    db
      .select({ id: instances.id })
      .from(instances)
      .where(and(eq(instances.id, id), isFitting, sql`(SELECT count(*) FROM ${locked}) = 2`))
      .for('update', { skipLocked: true }),
  )
  const hasKey = sql`EXISTS (SELECT FROM ${providerKeys} WHERE ${and(
    eq(providerKeys.organizationId, organizationId),
    eq(providerKeys.provider, columns.modelProvider),
  )})`
  const isClosed = and(eq(installation.name, stateName(regionName)), ne(installation.value, 'open'))
  const counted = db.$with('counted').as(
    db
      .update(organizations)
      .set({ instanceCount: sql`${instanceCount} + 1` })
      .where(
        and(
          eq(organizations.id, organizationId),
          isNull(organizations.deletedAt),
          or(isNull(instanceLimit), sql`${instanceCount} < ${instanceLimit}`),
          hasKey,
          notExists(db.select({ name: installation.name }).from(installation).where(isClosed)),
          sql`EXISTS (SELECT FROM ${warm})`,
        ),
      )
      .returning({ id: organizations.id }),
  )
  const isCounted = sql`EXISTS (SELECT FROM ${counted})`
  const uncounted = db.$with('uncounted').as(
    db
      .update(organizations)
      .set({ instanceCount: sql`${instanceCount} - 1` })
      .where(and(eq(organizations.id, poolOrganizationId), isCounted)),
  )
  const handedOver = db.$with('handed_over').as(
    db
      .update(ephemeralSessions)
      .set({ organizationId, dueAt: sessionEndsAt })
      .where(and(eq(ephemeralSessions.instanceId, id), isCounted)),
  )
  const [taken] = await db
    .with(locked, warm, counted, uncounted, handedOver)
    .update(instances)
    .set({ ...asked, ...raiseGeneration('takeFromPool'), organizationId, changedBy: changedBy() })
    .where(and(eq(instances.id, id), isCounted))
    .returning()
  return taken ?? null
}

/** The columns that decide which requests a warm instance fits, and fits best. */
export type WarmKind = Pick<Instance, 'openclawVersion' | 'modelProvider' | 'isolation'>

/** A warm instance of a region. */
export interface WarmInstance extends WarmKind, Pick<Instance, 'id'> {
  state: 'starting' | 'ready' | 'failed'
  /** Whether its last change is more than ten minutes ago. */
  isOld: boolean
}

/** The warm instances of a region, oldest first. */
export async function listWarmInstances(db: Db, isHere: SQL | undefined): Promise<WarmInstance[]> {
  const { id, openclawVersion, modelProvider, isolation, organizationId, updatedAt } = instances
  return db
    .select({
      ...{ id, openclawVersion, modelProvider, isolation },
      // One that something has stopped, such as the limit of its disk, is of no more use than one that failed.
      state: sql<WarmInstance['state']>`CASE WHEN ${hasStatus.running} THEN 'ready'
        WHEN ${hasStatus.provisioning} THEN 'starting' ELSE 'failed' END`,
      isOld: sql<boolean>`${updatedAt} < now() - interval '10 minutes'`,
    })
    .from(instances)
    .where(and(eq(organizationId, poolOrganizationId), isNotTerminated, isHere))
    .orderBy(id)
}

/** The latest instances that are searched for one of a region. */
const searched = 1000

/**
 * Returns the provider, isolation and region of a customer's latest instance in a region: the next one is probably
 * like it. Null when none of the latest 1,000 instances is in the region.
 */
export async function kindOfLatest(
  db: Db,
  isHere: SQL | undefined,
): Promise<Pick<Instance, 'modelProvider' | 'isolation' | 'region'> | null> {
  const latest = db
    .select({ id: instances.id })
    .from(instances)
    .where(ne(instances.organizationId, poolOrganizationId))
    .orderBy(desc(instances.id))
    .limit(searched)
  const [found] = await db
    .select({ modelProvider: instances.modelProvider, isolation: instances.isolation, region: instances.region })
    .from(instances)
    .where(and(inArray(instances.id, latest), isHere))
    .orderBy(desc(instances.createdAt))
    .limit(1)
  return found ?? null
}

/** Inserts the due row of a warm instance. The caller enqueues it. A crash half-way inserts nothing. */
export async function insertWarmInstance(
  db: Db,
  row: WarmKind & Pick<Instance, 'id' | 'region' | 'sandboxDriver' | 'sealedToken'>,
): Promise<void> {
  await db.transaction(async (tx) => {
    await tx
      .insert(organizations)
      .values({ id: poolOrganizationId, name: 'Warm pool', subscriptionTier: 'whale', instanceCount: 1 })
      .onConflictDoUpdate({
        target: organizations.id,
        set: { instanceCount: sql`${organizations.instanceCount} + 1` },
      })
    await tx.insert(instances).values({
      ...row,
      organizationId: poolOrganizationId,
      name: 'warm',
      desiredState: 'running',
      changedBy: changedBy({ type: 'instance.create' }),
    })
  })
}
