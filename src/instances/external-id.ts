import { and, eq } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type Instance, instances } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { isNotTerminated } from './status.ts'

/** Another instance of the organization has the external id. */
export class ExternalIdTaken extends AppError {
  readonly instance: Instance

  constructor(instance: Instance, externalId: string) {
    super('external_id_taken', texts.externalIdTaken(externalId, instance.id), { param: 'external_id' })
    this.instance = instance
  }
}

/** The organization's unterminated instance with this external id; null if there is none. */
export async function findByExternalId(db: Db, organizationId: string, externalId: string): Promise<Instance | null> {
  const isIts = and(eq(instances.organizationId, organizationId), eq(instances.externalId, externalId), isNotTerminated)
  const [found] = await db.select().from(instances).where(isIts)
  return found ?? null
}

function isTaken(error: unknown): boolean {
  const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error
  return cause instanceof Error && 'constraint' in cause && cause.constraint === 'instances_external_id'
}

/**
 * Runs a statement that gives an instance this external id. Throws ExternalIdTaken when another instance has it. In a
 * transaction, nest the statement in another one: PostgreSQL refuses all later statements after a violation.
 */
export async function explainTaken<T>(
  db: Db,
  organizationId: string,
  externalId: string,
  statement: () => Promise<T>,
): Promise<T> {
  try {
    return await statement()
  } catch (error) {
    if (!isTaken(error)) throw error
    const instance = await findByExternalId(db, organizationId, externalId)
    // It was terminated between the violation and the query, so the id is free again.
    throw instance ? new ExternalIdTaken(instance, externalId) : new AppError('resource_busy', texts.isBusy)
  }
}
