import { eq } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { readDatabaseMs } from '#database/clock.ts'
import { type HookCall, hooks } from '#database/hook-schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { recordEvent } from '#history/record.ts'
import { sessionKey } from '#openclaw/gateway/session-key.ts'
import type { Vault } from '#platform/secrets.ts'
import { toMicroseconds } from '#platform/timestamps.ts'
import { findHook, type Hook, unsealInput, unsealSecret } from './store.ts'
import { fillTemplate } from './template.ts'
import { type ReceivedCall, type VerifiedCall, verifyCall } from './verify.ts'

/** The calls that a hook remembers: a repeated one of these begins no second turn. */
const keptCalls = 50
/** Maximum characters of a message, which a background turn may have. */
const maxInputLength = 100_000
/** Events that say that a hook was set up. */
const setupEvents = new Set(['ping', 'url_verification'])

interface Turn {
  organizationId: string
  instanceId: string
  sessionKey: string
  model: string
  input: string
}

export interface ReceiveParts {
  db: Db
  vault: Vault
  /** Stores a background turn in a transaction, and returns the id of its row. Throws AppError when it is refused. */
  begin(tx: Db, turn: Turn): Promise<string>
  /** The id of a response for clients. */
  showId(responseId: string): string
}

/** Throws AppError `invalid_json` for a body that is no JSON object. */
function readObject(body: Buffer): Record<string, unknown> {
  try {
    const json: unknown = JSON.parse(body.toString())
    if (typeof json === 'object' && json !== null && !Array.isArray(json)) return json as Record<string, unknown>
  } catch {
    // The same answer as for another value.
  }
  throw new AppError('invalid_json', texts.hookBody)
}

/** The turn that a call asks for. Throws AppError `invalid_value` for a session id that is too long. */
function turnOf(vault: Vault, hook: Hook, { event }: VerifiedCall, json: Record<string, unknown>): Turn {
  const { organizationId, instanceId, model } = hook
  const values = { body: json, event }
  const input = fillTemplate(unsealInput(vault, hook), values).slice(0, maxInputLength).toWellFormed()
  return { organizationId, instanceId, model, input, sessionKey: sessionKey(fillTemplate(hook.session, values)) }
}

/**
 * Verifies a call, and begins its turn: in one transaction with the log of the hook, so that a call that its sender
 * repeats begins one turn. A turn that is refused is in the log, and its sender gets the error. Throws AppError
 * `not_found`, `invalid_json`, `invalid_signature`, and the errors of `begin`.
 */
export async function receiveCall(
  { db, vault, begin, showId }: ReceiveParts,
  id: string,
  { headers, body }: Pick<ReceivedCall, 'headers' | 'body'>,
): Promise<{ responseId: string | null; challenge?: string }> {
  const known = await findHook(db, id)
  const now = await readDatabaseMs(db)
  const json = readObject(body)
  const verified = verifyCall(known.kind, unsealSecret(vault, known), { headers, body, json, now })
  if (verified.event === 'url_verification') return { responseId: null, challenge: String(json.challenge ?? '') }

  const { call, error } = await db.transaction(async (tx): Promise<{ call: HookCall; error: AppError | null }> => {
    const [hook] = await tx.select().from(hooks).where(eq(hooks.id, known.id)).for('update')
    if (!hook) throw new AppError('not_found', texts.hookNotFound)
    const earlier = hook.calls.find(
      ({ delivery_id, outcome }) => delivery_id === verified.deliveryId && outcome !== 'failed',
    )
    if (earlier) return { call: earlier, error: null }
    const one: HookCall = {
      at: toMicroseconds(new Date(now)),
      delivery_id: verified.deliveryId,
      outcome: 'ignored',
      response_id: null,
      reason: null,
    }
    let refusal: AppError | null = null
    if (setupEvents.has(verified.event)) one.reason = texts.hookSetUp
    else if (hook.isPaused) one.reason = texts.hookPaused
    else {
      try {
        one.response_id = showId(await begin(tx, turnOf(vault, hook, verified, json)))
        one.outcome = 'started'
      } catch (cause) {
        if (!(cause instanceof AppError)) throw cause
        refusal = cause
        one.outcome = 'failed'
        one.reason = cause.message
      }
    }
    await tx
      .update(hooks)
      .set({ calls: [one, ...hook.calls].slice(0, keptCalls) })
      .where(eq(hooks.id, hook.id))
    const { organizationId, instanceId } = hook
    const reason = one.response_id ? `It began ${one.response_id}.` : (one.reason ?? '')
    await recordEvent(tx, { organizationId, instanceId, type: `hook.${one.outcome}`, subject: hook.id, reason })
    return { call: one, error: refusal }
  })
  if (error) throw error
  return { responseId: call.response_id }
}
