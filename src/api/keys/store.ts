import { hash } from 'node:crypto'
import { and, desc, eq, getTableColumns, inArray, isNotNull, isNull, ne, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { after, cutPage } from '#database/page.ts'
import { type ApiKey, apiKeys, instances, organizations, type Permission } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { recordEvent } from '#history/record.ts'
import { keyPrefixes, newApiKey } from '#http/api-key.ts'
import type { SessionScope } from '#http/session-scope.ts'
import { isNotTerminated } from '#instances/status.ts'
import { sessionKey } from '#openclaw/gateway/session-key.ts'
import { canonicalId, isId, newId } from '#platform/ids.ts'
import { parseTimestamp } from '#platform/timestamps.ts'

const shownCharacters = 4
/** Maximum keys of an organization, of both kinds: more than it needs. Limits of requests count by key. */
const maxActiveKeys = 1000

const kinds = {
  organization: isNull(apiKeys.permissions),
  scoped: isNotNull(apiKeys.permissions),
} as const
type Kind = keyof typeof kinds

/** Compared by the clock of the database: the clocks of processes differ. */
export const isActive = sql<boolean>`(
  ${apiKeys.revokedAt} IS NULL AND (${apiKeys.expiresAt} IS NULL OR ${apiKeys.expiresAt} > now())
)`

/** A key, and whether it is valid now. */
export type KeyRow = ApiKey & { isActive: boolean }
const columns = { ...getTableColumns(apiKeys), isActive }

/** The sessions visible to a key. */
export const sessionScopeOf = ({
  sessionIds,
  sessionPrefix,
}: Pick<ApiKey, 'sessionIds' | 'sessionPrefix'>): SessionScope | null =>
  sessionIds === null && sessionPrefix === null ? null : { ids: sessionIds ?? [], prefix: sessionPrefix }

/** Selects a key only within its organization and kind: any other id is not found. */
const isOwnedKey = (organizationId: string, kind: Kind, id: string) =>
  and(eq(apiKeys.id, id), eq(apiKeys.organizationId, organizationId), kinds[kind])

/** Makes a new key and the row for it. The key itself is shown once and never stored. */
function issueKey(organizationId: string, kind: Kind) {
  const key = newApiKey(kind)
  const row = {
    id: newId(),
    organizationId,
    keyHash: hash('sha256', key, 'buffer'),
    keyPrefix: `${key.slice(0, keyPrefixes[kind].length + shownCharacters)}....`,
  }
  return { key, row }
}

export const issueOrganizationKey = (organizationId: string) => issueKey(organizationId, 'organization')

/** Throws AppError `invalid` for a text that is not a time, and for a time in the past by the clock of the database. */
async function readExpiry(db: Db, text: string | null | undefined): Promise<Date | null> {
  if (text === undefined || text === null) return null
  const expiresAt = parseTimestamp(text)
  if (!expiresAt) throw new AppError('invalid_value', texts.badExpiry, { param: 'expires_at' })
  const { rowCount } = await db.execute(sql`SELECT WHERE ${expiresAt.toISOString()}::timestamptz > now()`)
  if (rowCount === 0) throw new AppError('invalid_value', texts.pastExpiry, { param: 'expires_at' })
  return expiresAt
}

/**
 * The distinct ids in canonical form. Throws AppError `invalid` with the ids that belong to no instance of the
 * organization, or to a terminated one.
 */
async function readInstanceIds(db: Db, organizationId: string, ids: readonly string[]): Promise<string[]> {
  const found = await db
    .select({ id: instances.id })
    .from(instances)
    .where(and(inArray(instances.id, ids.filter(isId)), eq(instances.organizationId, organizationId), isNotTerminated))
  const known = new Set(found.map(({ id }) => id))
  const unknown = ids.filter((id) => !known.has(canonicalId(id)))
  if (unknown.length > 0)
    throw new AppError('invalid_value', texts.unknownInstances(unknown), { param: 'instance_ids' })
  return [...new Set(ids.map(canonicalId))]
}

/** Throws AppError `invalid_value` for an impossible session. */
export function readSessionScope({ session_ids: ids, session_prefix: prefix }: RequestedSessions): SessionScope | null {
  if (ids === undefined && prefix === undefined) return null
  for (const id of [...(ids ?? []), ...(prefix === undefined ? [] : [prefix])]) sessionKey(id)
  return { ids: [...new Set(ids)], prefix: prefix ?? null }
}

/** As in requests. */
export interface RequestedSessions {
  session_ids?: string[]
  session_prefix?: string
}

export interface RequestedKey {
  name: string
  /** ISO 8601; a key without an expiry is valid until it is revoked. */
  expiresAt?: string | null | undefined
}

/** Locks an organization until the end of the transaction: serializes conflicting changes of its keys. */
const lockOrganization = (tx: Db, organizationId: string) =>
  tx
    .select({ id: organizations.id })
    .from(organizations)
    .where(eq(organizations.id, organizationId))
    .for('no key update')

/** Ensures that one more key may become active in this transaction. Throws AppError `too_many_keys`. */
async function requireRoom(tx: Db, organizationId: string): Promise<void> {
  await lockOrganization(tx, organizationId)
  const active = await tx.$count(apiKeys, and(eq(apiKeys.organizationId, organizationId), isActive))
  if (active >= maxActiveKeys) throw new AppError('too_many_keys', texts.tooManyKeys(maxActiveKeys))
}

/** Call it in a transaction. */
async function insertKey(
  db: Db,
  organizationId: string,
  kind: Kind,
  { name, expiresAt }: RequestedKey,
  scope: Pick<ApiKey, 'instanceIds' | 'permissions' | 'sessionIds' | 'sessionPrefix'> | null,
): Promise<{ key: string; row: KeyRow }> {
  await requireRoom(db, organizationId)
  const { key, row } = issueKey(organizationId, kind)
  const values = { ...row, ...scope, name, expiresAt: await readExpiry(db, expiresAt) }
  const [created] = await db.insert(apiKeys).values(values).returning(columns)
  await recordEvent(db, { organizationId, subject: row.id })
  return { key, row: created as KeyRow }
}

/** All other permissions reach beyond a session: the history of an instance, for example, names all sessions. */
const sessionPermissions: readonly Permission[] = ['interact', 'sessions']

/**
 * Creates a scoped key, in a transaction. Throws AppError `invalid` for a bad expiry, instance or session, and for
 * permissions that reach beyond the key's sessions; `conflict` when there are too many keys.
 */
export async function createKey(
  db: Db,
  organizationId: string,
  {
    instanceIds,
    permissions,
    sessions,
    ...rest
  }: RequestedKey & { instanceIds: readonly string[]; permissions: Permission[]; sessions: SessionScope | null },
) {
  const beyond = sessions && permissions.find((permission) => !sessionPermissions.includes(permission))
  if (beyond) throw new AppError('invalid_value', texts.permissionBeyondSessions(beyond), { param: 'permissions' })
  const scope = {
    permissions,
    instanceIds: await readInstanceIds(db, organizationId, instanceIds),
    sessionIds: sessions && [...sessions.ids],
    sessionPrefix: sessions?.prefix ?? null,
  }
  return insertKey(db, organizationId, 'scoped', rest, scope)
}

/** Creates another organization key, like `createKey`. */
export const createOrganizationKey = (db: Db, organizationId: string, key: RequestedKey) =>
  insertKey(db, organizationId, 'organization', key, null)

/** Returns a page of the keys of one kind, newest first, including revoked and expired ones. */
export async function listKeys(
  db: Db,
  organizationId: string,
  kind: Kind,
  { limit, position }: { limit: number; position: string | undefined },
) {
  const listed = await db
    .select(columns)
    .from(apiKeys)
    .where(
      and(
        eq(apiKeys.organizationId, organizationId),
        kinds[kind],
        position === undefined ? undefined : after(apiKeys, organizationId, position),
      ),
    )
    .orderBy(desc(apiKeys.createdAt), desc(apiKeys.id))
    .limit(limit + 1)
  return cutPage(listed, limit)
}

/** Throws AppError `not_found` for an id that is missing, malformed or of another organization. */
export async function getKey(db: Db, organizationId: string, kind: Kind, id: string): Promise<KeyRow> {
  const [row] = isId(id)
    ? await db
        .select(columns)
        .from(apiKeys)
        .where(isOwnedKey(organizationId, kind, id))
    : []
  if (!row) throw new AppError('not_found', texts.keyNotFound)
  return row
}

/** The key of a request, and the name of its organization. Throws AppError `unauthenticated` when it is gone. */
export async function getCurrentKey(db: Db, keyId: string): Promise<{ key: KeyRow; organizationName: string }> {
  const [row] = await db
    .select({ key: columns, organizationName: organizations.name })
    .from(apiKeys)
    .innerJoin(organizations, eq(organizations.id, apiKeys.organizationId))
    .where(eq(apiKeys.id, keyId))
  if (!row) throw new AppError('invalid_api_key', texts.unknownKey)
  return row
}

/** Finds a key of either kind. Throws AppError `not_found` as `getKey` does. */
export async function findKey(db: Db, organizationId: string, id: string): Promise<KeyRow> {
  const [row] = isId(id)
    ? await db
        .select(columns)
        .from(apiKeys)
        .where(and(eq(apiKeys.id, id), eq(apiKeys.organizationId, organizationId)))
    : []
  if (!row) throw new AppError('not_found', texts.keyNotFound)
  return row
}

/**
 * Changes the name or the expiry of a scoped key; null removes the expiry. Throws AppError `conflict` for a revoked
 * key, and for an expired one if without its expiry there would be too many keys.
 */
export async function patchKey(
  db: Db,
  organizationId: string,
  id: string,
  patch: { name?: string | undefined; expiresAt?: string | null | undefined },
): Promise<KeyRow> {
  const { revokedAt, isActive: wasActive } = await getKey(db, organizationId, 'scoped', id)
  if (revokedAt) throw new AppError('key_revoked', texts.keyRevoked)
  const expiresAt = await readExpiry(db, patch.expiresAt)
  return db.transaction(async (tx) => {
    if (!wasActive && patch.expiresAt !== undefined) await requireRoom(tx, organizationId)
    const [row] = await tx
      .update(apiKeys)
      .set({ name: patch.name ?? sql`${apiKeys.name}`, ...(patch.expiresAt !== undefined && { expiresAt }) })
      .where(and(isOwnedKey(organizationId, 'scoped', id), isNull(apiKeys.revokedAt)))
      .returning(columns)
    if (!row) throw new AppError('key_revoked', texts.keyRevoked)
    await recordEvent(tx, { organizationId, subject: row.id })
    return row
  })
}

/** Revokes a key for ever. Changes nothing if it is revoked. Throws AppError `not_found`. */
async function revoke(tx: Db, organizationId: string, kind: Kind, id: string): Promise<KeyRow> {
  const [row] = isId(id)
    ? await tx
        .update(apiKeys)
        .set({ revokedAt: sql`coalesce(${apiKeys.revokedAt}, now())` })
        .where(isOwnedKey(organizationId, kind, id))
        .returning(columns)
    : []
  if (!row) throw new AppError('not_found', texts.keyNotFound)
  await recordEvent(tx, { organizationId, subject: row.id })
  return row
}

export const revokeKey = (db: Db, organizationId: string, id: string) =>
  db.transaction((tx) => revoke(tx, organizationId, 'scoped', id))

/**
 * Revokes an organization key for ever. Throws AppError `conflict` for the last active one. Revocations of one
 * organization are serialized: two at once cannot revoke the last two keys.
 */
export const revokeOrganizationKey = (db: Db, organizationId: string, id: string): Promise<KeyRow> =>
  db.transaction(async (tx) => {
    await lockOrganization(tx, organizationId)
    const { isActive: wasActive } = await getKey(tx, organizationId, 'organization', id)
    const [other] = await tx
      .select({ id: apiKeys.id })
      .from(apiKeys)
      .where(and(eq(apiKeys.organizationId, organizationId), kinds.organization, isActive, ne(apiKeys.id, id)))
      .limit(1)
    if (wasActive && !other) throw new AppError('last_organization_key', texts.lastOrganizationKey)
    return revoke(tx, organizationId, 'organization', id)
  })
