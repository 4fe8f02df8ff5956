import { createHash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { Type } from '@sinclair/typebox'
import { and, eq, gt, lt, sql } from 'drizzle-orm'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { type Db, onceMoreOnDeadlock } from '#database/client.ts'
import { idempotencyKeys } from '#database/schema.ts'
import { AppError } from '#platform/errors.ts'
import type { Vault } from '#platform/secrets.ts'
import { texts } from '#platform/texts.ts'

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
const pauseMs = 100
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
 * AppError `conflict` when a twin takes longer than 10 s; it is waited for without a connection to the database.
 */
export async function idempotent<Body>(
  { db, vault }: { db: Db; vault: Vault },
  request: FastifyRequest,
  reply: FastifyReply,
  act: (tx: Db) => Promise<Body>,
  { isOneStatement = false } = {},
): Promise<Body> {
  const key = request.headers['idempotency-key']
  if (typeof key !== 'string') return onceMoreOnDeadlock(() => (isOneStatement ? act(db) : db.transaction(act)))
  const { organizationId } = request.caller
  const requestHash = hashOf(request)
  const place = answerPlace(organizationId, key)
  const answer = () =>
    db.transaction(async (tx): Promise<Answered | null> => {
      const claimed = await claim(tx, organizationId, key, requestHash)
      if (claimed === 'by a twin') return null
      if (claimed !== 'here') return { body: JSON.parse(vault.unseal(claimed.sealedAnswer, place)), replayed: true }
      const body = await act(tx)
      const sealedAnswer = vault.seal(JSON.stringify(body), place)
      await tx.update(idempotencyKeys).set({ sealedAnswer }).where(owned(organizationId, key))
      return { body, replayed: false }
    })
  for (const deadline = performance.now() + twinWaitMs; performance.now() < deadline; await sleep(pauseMs)) {
    const answered = await onceMoreOnDeadlock(answer)
    if (!answered) continue
    if (answered.replayed) reply.header('idempotent-replayed', 'true')
    return answered.body as Body
  }
  throw new AppError('conflict', texts.twinUnderWay, { retryAfterSeconds: 1 })
}

const owned = (organizationId: string, key: string) =>
  and(eq(idempotencyKeys.organizationId, organizationId), eq(idempotencyKeys.key, key))

/**
 * Takes the key for this transaction, unless a twin in another one has it right now, or it has an answer already. Never
 * waits: a hundred twins of a slow request would otherwise keep all connections from everybody else.
 */
async function claim(
  tx: Db,
  organizationId: string,
  key: string,
  requestHash: Buffer,
): Promise<'here' | 'by a twin' | { sealedAnswer: string }> {
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
    if (claimed.length > 0) return 'here'
  }
  const [stored] = await tx
    .select()
    .from(idempotencyKeys)
    .where(and(owned(organizationId, key), gt(idempotencyKeys.expiresAt, sql`now()`)))
  if (!stored) return 'by a twin'
  if (!stored.requestHash.equals(requestHash)) throw otherRequest()
  return { sealedAnswer: stored.sealedAnswer! } // written by the transaction that made the row
}

/** Deletes the answers that are no longer kept, in batches. Throws the signal's reason between two. */
export async function clearExpiredAnswers(db: Db, signal?: AbortSignal): Promise<void> {
  for (;;) {
    const { rowCount } = await db.execute(sql`
      DELETE FROM idempotency_keys WHERE (organization_id, key) IN (
        SELECT organization_id, key FROM idempotency_keys WHERE expires_at < now() LIMIT ${batch} FOR UPDATE SKIP LOCKED)`)
    if ((rowCount ?? 0) < batch) return
    signal?.throwIfAborted()
  }
}
