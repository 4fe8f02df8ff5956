import { createHash } from 'node:crypto'
import { Type } from '@sinclair/typebox'
import { and, eq, gt, lt, sql } from 'drizzle-orm'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { type Db, retryOnDeadlock } from '#database/client.ts'
import { idempotencyKeys } from '#database/schema.ts'
import { AppError } from '#platform/errors.ts'
import { poll } from '#platform/poll.ts'
import type { Vault } from '#platform/secrets.ts'
import { texts } from '#platform/texts.ts'
import { visibleText } from './validation.ts'
import { idempotencyFault } from './validation-faults.ts'

/** For the `headers` of routes that answer through `idempotent`. */
export const IdempotencyHeaders = Type.Object({
  'idempotency-key': Type.Optional(
    Type.String({
      minLength: 1,
      maxLength: 255,
      ...visibleText,
      description:
        'Makes the request safe to repeat: for 24 hours the same key with the same body gives the same answer again, ' +
        'with `Idempotent-Replayed: true`, and creates nothing. The same key with another body is a 422. Other ' +
        'organizations can use the same keys.',
    }),
  ),
})

const keptFor = sql`now() + interval '24 hours'`
const duplicateWaitMs = 10_000
const pauseMs = 100
const deletedRowsPerStatement = 500

interface Answered {
  status: number
  body: unknown
  replayed: boolean
}

const sortedFields = (_name: string, value: unknown): unknown =>
  typeof value === 'object' && value !== null && !Array.isArray(value)
    ? Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)))
    : value

/** Equal for equal requests: the order of the fields of a body does not matter. */
const hashOf = ({ method, url, body }: FastifyRequest): Buffer =>
  createHash('sha256')
    .update(`${method} ${url.split('?')[0]}\n${JSON.stringify(body, sortedFields)}`)
    .digest()

const answerPlace = (organizationId: string, key: string) => `idempotency_keys/${organizationId}.${key}/sealed_answer`

/** Looks like an error of the schema of the header, which `detail` lists as one. */
const keyOfOtherRequest = () =>
  Object.assign(new Error(texts.idempotencyKeyUsed), {
    validation: [
      {
        instancePath: '/idempotency-key',
        keyword: idempotencyFault,
        message: texts.idempotencyKeyUsed,
        params: {},
        schemaPath: '',
      },
    ],
    validationContext: 'headers',
  })

/**
 * Returns the answer that `act` creates, which has the status of `reply`. With an `Idempotency-Key`, the answer is stored in the same transaction, and
 * the same request gets it again. So `act` takes effect once, also when the request comes many times at once, or when
 * the process dies before it answers. Nothing is stored when `act` throws. A duplicate of a request that is in progress
 * waits for its answer, without a connection to the database. Throws a 422 when the key came with another request, and
 * AppError `conflict` when the first request takes longer than 10 s.
 */
export async function idempotent<Body>(
  { db, vault }: { db: Db; vault: Vault },
  request: FastifyRequest,
  reply: FastifyReply,
  act: (tx: Db) => Promise<Body>,
  { isOneStatement = false } = {},
): Promise<Body> {
  const key = request.headers['idempotency-key']
  if (typeof key !== 'string') return retryOnDeadlock(() => (isOneStatement ? act(db) : db.transaction(act)))
  const { organizationId } = request.caller
  const requestHash = hashOf(request)
  const place = answerPlace(organizationId, key)
  const answer = () =>
    db.transaction(async (tx): Promise<Answered | null> => {
      const claimed = await claim(tx, organizationId, key, requestHash)
      if (claimed === 'duplicate') return null
      if (claimed !== 'claimed') {
        const { status, sealedAnswer } = claimed
        return { status, body: JSON.parse(vault.unseal(sealedAnswer, place)), replayed: true }
      }
      const body = await act(tx)
      const sealedAnswer = vault.seal(JSON.stringify(body), place)
      const { statusCode: status } = reply
      await tx.update(idempotencyKeys).set({ status, sealedAnswer }).where(owned(organizationId, key))
      return { status, body, replayed: false }
    })
  const answered = await poll(() => retryOnDeadlock(answer), { pauseMs, timeoutMs: duplicateWaitMs })
  if (!answered) throw new AppError('request_in_progress', texts.duplicateInProgress, { retryAfterSeconds: 1 })
  if (answered.replayed) reply.code(answered.status).header('idempotent-replayed', 'true')
  return answered.body as Body
}

const owned = (organizationId: string, key: string) =>
  and(eq(idempotencyKeys.organizationId, organizationId), eq(idempotencyKeys.key, key))

/**
 * Claims the key for this transaction. Returns `duplicate` when another transaction has it right now, or the answer
 * that is already stored. Never waits: a hundred duplicates of a slow request would otherwise hold all database
 * connections.
 */
async function claim(
  tx: Db,
  organizationId: string,
  key: string,
  requestHash: Buffer,
): Promise<'claimed' | 'duplicate' | { status: number; sealedAnswer: string }> {
  const { rows } = await tx.execute(
    sql`SELECT pg_try_advisory_xact_lock(hashtextextended(${`${organizationId} ${key}`}, 0)) AS mine`,
  )
  if (rows[0]?.mine) {
    const claimed = await tx
      .insert(idempotencyKeys)
      .values({ organizationId, key, requestHash, expiresAt: keptFor })
      .onConflictDoUpdate({
        target: [idempotencyKeys.organizationId, idempotencyKeys.key],
        set: { requestHash, sealedAnswer: null, expiresAt: keptFor },
        setWhere: lt(idempotencyKeys.expiresAt, sql`now()`),
      })
      .returning({ key: idempotencyKeys.key })
    if (claimed.length > 0) return 'claimed'
  }
  const [stored] = await tx
    .select()
    .from(idempotencyKeys)
    .where(and(owned(organizationId, key), gt(idempotencyKeys.expiresAt, sql`now()`)))
  if (!stored) return 'duplicate'
  if (!stored.requestHash.equals(requestHash)) throw keyOfOtherRequest()
  const { status, sealedAnswer } = stored // never null once committed: the transaction that inserts the row sets it
  return sealedAnswer === null ? 'duplicate' : { status: status ?? 201, sealedAnswer }
}

/** Deletes expired answers in batches. Throws the reason of the signal between two batches. */
export async function clearExpiredAnswers(db: Db, signal?: AbortSignal): Promise<void> {
  for (;;) {
    const { rowCount } = await db.execute(sql`
      DELETE FROM idempotency_keys WHERE (organization_id, key) IN (
        SELECT organization_id, key FROM idempotency_keys WHERE expires_at < now()
        LIMIT ${deletedRowsPerStatement} FOR UPDATE SKIP LOCKED)`)
    if ((rowCount ?? 0) < deletedRowsPerStatement) return
    signal?.throwIfAborted()
  }
}
