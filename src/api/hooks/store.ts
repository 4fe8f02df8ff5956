import { randomBytes } from 'node:crypto'
import { and, desc, eq, isNull } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type HookKind, hooks } from '#database/hook-schema.ts'
import { after, cutPage } from '#database/page.ts'
import { instances, organizations } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { recordEvent } from '#history/record.ts'
import { isOwnedBy } from '#instances/row.ts'
import { isNotTerminated } from '#instances/status.ts'
import { isId, newId } from '#platform/ids.ts'
import type { Vault } from '#platform/secrets.ts'

const maxHooks = 20
const secretBytes = 32

export type Hook = typeof hooks.$inferSelect

/** The fields of a hook in the API; undefined for those that a call leaves as they are. */
export interface HookFields {
  name?: string
  secret?: string
  input?: string
  session_id?: string
  model?: string
  paused?: boolean
}

const secretPlace = (id: string) => `hooks/${id}/sealed_secret` as const
const inputPlace = (id: string) => `hooks/${id}/sealed_input` as const

export const unsealSecret = (vault: Vault, { id, sealedSecret }: Hook) => vault.unseal(sealedSecret, secretPlace(id))
export const unsealInput = (vault: Vault, { id, sealedInput }: Hook) => vault.unseal(sealedInput, inputPlace(id))

/** Throws AppError `invalid_value` for a secret that Standard Webhooks does not have. */
function checkSecret(kind: HookKind, secret: string): string {
  if (kind !== 'standard' || /^whsec_[A-Za-z0-9+/]{32,}={0,2}$/.test(secret)) return secret
  throw new AppError('invalid_value', texts.badHookSecret, { param: 'secret' })
}

const columnsOf = (id: string, vault: Vault, kind: HookKind, sent: HookFields) => ({
  ...(sent.name !== undefined && { name: sent.name }),
  ...(sent.secret !== undefined && { sealedSecret: vault.seal(checkSecret(kind, sent.secret), secretPlace(id)) }),
  ...(sent.input !== undefined && { sealedInput: vault.seal(sent.input, inputPlace(id)) }),
  ...(sent.session_id !== undefined && { session: sent.session_id }),
  ...(sent.model !== undefined && { model: sent.model }),
  ...(sent.paused !== undefined && { isPaused: sent.paused }),
})

/**
 * Creates a hook, in a transaction. Returns the secret that was made if none was sent. Throws AppError `invalid_value`,
 * `instance_terminated` and `too_many_resources`.
 */
export async function createHook(
  tx: Db,
  vault: Vault,
  { organizationId, id: instanceId }: { organizationId: string; id: string },
  { kind, ...sent }: HookFields & { kind: HookKind; input: string },
): Promise<{ row: Hook; secret: string }> {
  const id = newId()
  const secret = sent.secret ?? `whsec_${randomBytes(secretBytes).toString('base64')}`
  const columns = columnsOf(id, vault, kind, { name: '', session_id: `hook-${id}`, model: 'openclaw', ...sent, secret })
  const isLiving = and(isOwnedBy(organizationId, instanceId), isNotTerminated)
  const [living] = await tx.select({ id: instances.id }).from(instances).where(isLiving).for('no key update')
  if (!living) throw new AppError('instance_terminated', texts.isTerminated)
  if ((await tx.$count(hooks, eq(hooks.instanceId, instanceId))) >= maxHooks) {
    throw new AppError('too_many_resources', texts.tooManyHooks(maxHooks))
  }
  const values = { id, organizationId, instanceId, kind, ...columns } as typeof hooks.$inferInsert
  const [row] = await tx.insert(hooks).values(values).returning()
  await recordEvent(tx, { organizationId, instanceId, subject: id })
  return { row: row as Hook, secret }
}

const isOwned = (instanceId: string, id: string) => and(eq(hooks.id, id), eq(hooks.instanceId, instanceId))

/** Throws AppError `not_found` for an id that is missing, malformed or of another instance. */
export async function getHook(db: Db, instanceId: string, id: string): Promise<Hook> {
  const [row] = isId(id) ? await db.select().from(hooks).where(isOwned(instanceId, id)) : []
  if (!row) throw new AppError('not_found', texts.hookNotFound)
  return row
}

/** The hook that a call names, if its organization may act and its instance is there. Throws AppError `not_found`. */
export async function findHook(db: Db, id: string): Promise<Hook> {
  const [found] = isId(id)
    ? await db
        .select({ hook: hooks })
        .from(hooks)
        .innerJoin(instances, eq(instances.id, hooks.instanceId))
        .innerJoin(organizations, eq(organizations.id, hooks.organizationId))
        .where(
          and(eq(hooks.id, id), isNotTerminated, isNull(organizations.suspendedAt), isNull(organizations.deletedAt)),
        )
    : []
  if (!found) throw new AppError('not_found', texts.hookNotFound)
  return found.hook
}

/** A page of the hooks of an instance, newest first. */
export async function listHooks(
  db: Db,
  { organizationId, id: instanceId }: { organizationId: string; id: string },
  { limit, position }: { limit: number; position: string | undefined },
) {
  const isListed = position === undefined ? undefined : after(hooks, organizationId, position)
  const rows = await db
    .select()
    .from(hooks)
    .where(and(eq(hooks.instanceId, instanceId), isListed))
    .orderBy(desc(hooks.createdAt), desc(hooks.id))
    .limit(limit + 1)
  return cutPage(rows, limit)
}

/** Changes what is sent. Throws AppError `not_found` and `invalid_value`. */
export async function patchHook(db: Db, vault: Vault, instanceId: string, id: string, sent: HookFields): Promise<Hook> {
  const { id: known, kind, organizationId } = await getHook(db, instanceId, id)
  return db.transaction(async (tx) => {
    const columns = columnsOf(known, vault, kind, sent)
    const [row] = await tx
      .update(hooks)
      .set({ id: known, ...columns })
      .where(isOwned(instanceId, known))
      .returning()
    if (!row) throw new AppError('not_found', texts.hookNotFound)
    await recordEvent(tx, { organizationId, instanceId, subject: known })
    return row
  })
}

/** Throws AppError `not_found`. */
export async function deleteHook(db: Db, instanceId: string, id: string): Promise<void> {
  const { id: known, organizationId } = await getHook(db, instanceId, id)
  await db.transaction(async (tx) => {
    await tx.delete(hooks).where(isOwned(instanceId, known))
    await recordEvent(tx, { organizationId, instanceId, subject: known })
  })
}
