import { createHash } from 'node:crypto'
import { Type } from '@sinclair/typebox'
import { and, eq, gt, isNull, sql } from 'drizzle-orm'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { type Db, retryOnDeadlock } from '#database/client.ts'
import { isProcessAlive } from '#database/processes.ts'
import { idempotencyKeys } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { poll } from '#platform/poll.ts'
import type { Place, Vault } from '#platform/secrets.ts'
import { visibleText } from '#platform/typebox.ts'
import { idempotencyFault } from './validation-faults.ts'

/** The headers of a POST that accepts a key. */
export const IdempotencyHeaders = Type.Object({
  'idempotency-key': Type.Optional(
    Type.String({
      minLength: 1,
      maxLength: 255,
      ...visibleText,
      description:
        'Makes the request safe to repeat: for 24 hours the same key with the same body gives the same answer again, ' +
        'with `Idempotent-Replayed: true`, and changes nothing. A failure is not kept. The same key with another body ' +
        'or path is a 422. Organization keys share their idempotency keys; each scoped key has its own.',
    }),
  ),
})

const keptFor = sql`now() + interval '24 hours'`
const duplicateWaitMs = 10_000
const pauseMs = 100
const deletedRowsPerStatement = 500

interface Answer {
  status: number
  body: unknown
}

const sortedFields = (_name: string, value: unknown): unknown =>
  typeof value === 'object' && value !== null && !Array.isArray(value)
    ? Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)))
    : value

/** Equal for equal requests, whatever the order of the fields of a body. */
const hashOf = ({ method, url, body }: FastifyRequest): Buffer =>
  createHash('sha256')
    .update(`${method} ${url.split('?')[0]}\n${JSON.stringify(body, sortedFields)}`)
    .digest()

/** The name of a request's key among those of its organization, or null without one. */
function nameOf({ headers, caller: { keyId, permissions } }: FastifyRequest): string | null {
  const key = headers['idempotency-key']
  if (typeof key !== 'string') return null
  return permissions === null ? key : `${keyId} ${key}`
}

const answerPlace = (organizationId: string, key: string): Place =>
  `idempotency_keys/${organizationId}.${key}/sealed_answer`

/** In the form of a schema error of the header, so that `detail` lists it as one. */
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
 * Returns the answer that `act` creates, with the status of `reply`. With an `Idempotency-Key`, the answer is stored in
 * the same transaction, and the same request gets it again. So `act` takes effect once, even if the request comes many
 * times at once, or the process dies before it answers. Nothing is stored when `act` throws. A duplicate of a request
 * in progress waits for its answer, without a connection to the database. Throws a 422 when the key came with another
 * request, and AppError `request_in_progress` when the first request takes longer than 10 s.
 */
export async function idempotent<Body>(
  { db, vault }: { db: Db; vault: Vault },
  request: FastifyRequest,
  reply: FastifyReply,
  act: (tx: Db) => Promise<Body>,
  { isOneStatement = false } = {},
): Promise<Body> {
  const key = nameOf(request)
  if (key === null) return retryOnDeadlock(() => (isOneStatement ? act(db) : db.transaction(act)))
  const { organizationId } = request.caller
  const requestHash = hashOf(request)
  const place = answerPlace(organizationId, key)
  const stored = await untilAnswered(() =>
    db.transaction(async (tx): Promise<Answer | { own: Body } | null> => {
      const claimed = await claim(tx, organizationId, key, requestHash, null)
      if (claimed === 'duplicate') return null
      if (claimed !== 'claimed') return unsealAnswer(vault, place, claimed)
      const own = await act(tx)
      const sealedAnswer = vault.seal(JSON.stringify(own), place)
      const { statusCode: status } = reply
      await tx.update(idempotencyKeys).set({ status, sealedAnswer }).where(owned(organizationId, key))
      return { own }
    }),
  )
  if ('own' in stored) return stored.own
  reply.code(stored.status).header('idempotent-replayed', 'true')
  return stored.body as Body
}

const unsealAnswer = (vault: Vault, place: Place, { status, sealedAnswer }: StoredAnswer): Answer => ({
  status,
  body: JSON.parse(vault.unseal(sealedAnswer, place)),
})

/** Repeats a function that returns null while another request is in progress. */
async function untilAnswered<T>(attempt: () => Promise<T | null>): Promise<T> {
  const answered = await poll(() => retryOnDeadlock(attempt), { pauseMs, timeoutMs: duplicateWaitMs })
  if (answered) return answered
  throw new AppError('request_in_progress', texts.duplicateInProgress, { retryAfterSeconds: 1 })
}

/** The request owns the key until the answer is stored or the key released. */
export interface Claim {
  /** Stores the answer, a JSON text, for 24 hours. */
  store(status: number, answer: string): Promise<unknown>
  /** Allows the same request to be carried out again. */
  release(): Promise<unknown>
}

/**
 * Claims the `Idempotency-Key` of a request whose work is in no transaction, or returns its stored answer. Null without
 * a key. The claim lasts until it is settled, or its process is dead. Throws the errors of `idempotent`.
 */
export async function claimKey(
  { db, vault, processId }: { db: Db; vault: Vault; processId: string },
  request: FastifyRequest,
): Promise<Claim | Answer | null> {
  const key = nameOf(request)
  if (key === null) return null
  const { organizationId } = request.caller
  const requestHash = hashOf(request)
  const place = answerPlace(organizationId, key)
  const claimed = await untilAnswered(() =>
    db.transaction(async (tx) => {
      const result = await claim(tx, organizationId, key, requestHash, processId)
      return result === 'duplicate' ? null : result
    }),
  )
  if (claimed !== 'claimed') return unsealAnswer(vault, place, claimed)
  const isOurs = and(
    owned(organizationId, key),
    eq(idempotencyKeys.processId, processId),
    isNull(idempotencyKeys.sealedAnswer),
  )
  return {
    store: (status, answer) =>
      db
        .update(idempotencyKeys)
        .set({ status, sealedAnswer: vault.seal(answer, place), processId: null, expiresAt: keptFor })
        .where(isOurs)
        .execute(),
    release: () => db.delete(idempotencyKeys).where(isOurs).execute(),
  }
}

interface StoredAnswer {
  status: number
  sealedAnswer: string
}

const owned = (organizationId: string, key: string) =>
  and(eq(idempotencyKeys.organizationId, organizationId), eq(idempotencyKeys.key, key))

/** Whether another request may use the key: it has expired, or the process that claimed it is dead. */
const isFree = sql`${idempotencyKeys.expiresAt} < now() OR (${idempotencyKeys.processId} IS NOT NULL
  AND NOT ${sql.raw(isProcessAlive('idempotency_keys.process_id'))})`

/**
 * Claims the key for this transaction or, until its answer is stored, for a process. Returns `duplicate` when another
 * transaction has it now, or the stored answer. Never waits: a hundred duplicates of a slow request would otherwise
 * hold all database connections.
 */
async function claim(
  tx: Db,
  organizationId: string,
  key: string,
  requestHash: Buffer,
  processId: string | null,
): Promise<'claimed' | 'duplicate' | StoredAnswer> {
  const { rows } = await tx.execute(
    sql`SELECT pg_try_advisory_xact_lock(hashtextextended(${`${organizationId} ${key}`}, 0)) AS mine`,
  )
  if (rows[0]?.mine) {
    const claimed = await tx
      .insert(idempotencyKeys)
      .values({ organizationId, key, requestHash, processId, expiresAt: keptFor })
      .onConflictDoUpdate({
        target: [idempotencyKeys.organizationId, idempotencyKeys.key],
        set: { requestHash, sealedAnswer: null, status: null, processId, expiresAt: keptFor },
        setWhere: isFree,
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
  const { status, sealedAnswer } = stored // null while a process has claimed it
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
