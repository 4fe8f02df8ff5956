import { createHash } from 'node:crypto'
import { Type } from '@sinclair/typebox'
import { and, eq, lt, sql } from 'drizzle-orm'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { type Db, inTransaction, onceMoreOnDeadlock, type Statements } from '../database/client.ts'
import { idempotencyKeys } from '../database/schema.ts'
import { AppError } from '../platform/errors.ts'
import type { Vault } from '../platform/secrets.ts'
import { texts } from '../platform/texts.ts'

/** For the `headers` of routes that answer through `idempotent`. */
export const IdempotencyHeaders = Type.Object({
  'idempotency-key': Type.Optional(
    Type.String({
      minLength: 1,
      maxLength: 255,
      pattern: '^[\\x21-\\x7e]*$',
      description:
        'Makes the request safe to repeat: for 24 hours the same key with the same body gives the same answer again, with `Idempotent-Replayed: true`, and creates nothing. The same key with another body is a 422. Keys are your organization’s own.',
    }),
  ),
})

const keptFor = sql`now() + interval '24 hours'`
const twinWaitMs = 10_000
const lockNotAvailable = '55P03'
/** Rows that one statement clears at most; the next one follows at once. */
const batch = 500

interface Answered {
  body: unknown
  replayed: boolean
}

const inOrder = (_name: string, value: unknown): unknown =>
  typeof value === 'object' && value !== null && !Array.isArray(value)
    ? Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)))
    : value

/** The same for two requests that ask the same: the order of a body's fields says nothing. */
const hashOf = ({ method, routeOptions, body }: FastifyRequest): Buffer =>
  createHash('sha256')
    .update(`${method} ${routeOptions.url}\n${JSON.stringify(body, inOrder)}`)
    .digest()

const answerPlace = (organizationId: string, key: string) => `idempotency_keys/${organizationId}.${key}/sealed_answer`

/** As the schema's own refusals are shown. */
const otherRequest = () =>
  Object.assign(new Error(texts.idempotencyKeyUsed), {
    validation: [
      {
        instancePath: '/idempotency-key',
        keyword: 'idempotency',
        message: texts.idempotencyKeyUsed,
        params: {},
        schemaPath: '',
      },
    ],
    validationContext: 'headers',
  })

/**
 * Answers what `act` creates. With an `Idempotency-Key` the answer is stored in the same transaction, and the same
 * request gets it again: `act` creates once, however often and however concurrently it is asked, and when the process
 * dies before it could answer. What `act` throws is stored nowhere. Throws a 422 when the key came with another request,
 * AppError `conflict` when a twin takes longer than 10 s.
 */
export async function idempotent<Body>(
  { db, vault }: { db: Db; vault: Vault },
  request: FastifyRequest,
  reply: FastifyReply,
  act: (statements: Statements) => Promise<Body>,
): Promise<Body> {
  const key = request.headers['idempotency-key']
  if (typeof key !== 'string') return onceMoreOnDeadlock(() => act(db))
  const { organizationId } = request.caller
  const { body, replayed } = await onceMoreOnDeadlock(() =>
    inTransaction(db, async (statements): Promise<Answered> => {
      const stored = await claim(statements, organizationId, key, hashOf(request))
      const place = answerPlace(organizationId, key)
      if (stored !== null) return { body: JSON.parse(vault.open(stored, place)), replayed: true }
      const body = await act(statements)
      const sealedAnswer = vault.seal(JSON.stringify(body), place)
      await statements.update(idempotencyKeys).set({ sealedAnswer }).where(owned(organizationId, key))
      return { body, replayed: false }
    }),
  )
  if (replayed) reply.header('idempotent-replayed', 'true')
  return body as Body
}

const owned = (organizationId: string, key: string) =>
  and(eq(idempotencyKeys.organizationId, organizationId), eq(idempotencyKeys.key, key))

/**
 * Takes the key for this transaction: null, or the sealed answer of the request that had it before. A twin in another
 * transaction is waited for by the unique index.
 */
async function claim(
  statements: Statements,
  organizationId: string,
  key: string,
  requestHash: Buffer,
): Promise<string | null> {
  await statements.execute(sql`SELECT set_config('lock_timeout', ${String(twinWaitMs)}, true)`)
  const claimed = await statements
    .insert(idempotencyKeys)
    .values({ organizationId, key, requestHash, expiresAt: keptFor })
    .onConflictDoUpdate({
      target: [idempotencyKeys.organizationId, idempotencyKeys.key],
      set: { requestHash, sealedAnswer: null, expiresAt: keptFor },
      setWhere: lt(idempotencyKeys.expiresAt, sql`now()`),
    })
    .returning({ key: idempotencyKeys.key })
    .catch((error: unknown) => {
      const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error
      if (!(cause instanceof Error && 'code' in cause && cause.code === lockNotAvailable)) throw error
      throw new AppError('conflict', texts.twinUnderWay, { cause: error, retryAfterSeconds: 1 })
    })
  if (claimed.length > 0) return null
  const [stored] = await statements.select().from(idempotencyKeys).where(owned(organizationId, key))
  if (!stored?.requestHash.equals(requestHash)) throw otherRequest()
  return stored.sealedAnswer
}

/** Deletes the answers that are no longer kept, in batches. */
export async function clearExpiredAnswers(db: Db): Promise<void> {
  for (;;) {
    const { rowCount } = await db.execute(sql`
      DELETE FROM idempotency_keys WHERE (organization_id, key) IN (
        SELECT organization_id, key FROM idempotency_keys WHERE expires_at < now() LIMIT ${batch} FOR UPDATE SKIP LOCKED)`)
    if ((rowCount ?? 0) < batch) return
  }
}
