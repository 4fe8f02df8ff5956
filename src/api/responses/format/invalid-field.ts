import { AppError } from '#errors/app-error.ts'
import type { ErrorCode } from '#errors/codes.ts'
import { closestWord } from '#platform/closest.ts'

/**
 * The error for an unacceptable field of a request: a 400 with the field and the reason. A field without a name appears
 * only in the message.
 */
export const invalidField = (param: string, why: string, code: ErrorCode = 'invalid_value'): AppError =>
  param === '' ? new AppError(code, `"": ${why}`) : new AppError(code, `${param}: ${why}`, { param })

/** A field of a format that is refused for some or all of its values. */
export type RefusedField<Body> = [name: keyof Body, isRefused: (value: unknown) => boolean, why: string]

/** Throws AppError invalid for a field that is not in `known`, and for a field of `refused` unless it is null. */
export function refuseFields<Body extends object>(
  body: Body,
  known: ReadonlySet<string>,
  refused: readonly RefusedField<Body>[],
): void {
  const unknown = Object.keys(body).find((name) => !known.has(name))
  if (unknown !== undefined) {
    const close = closestWord(unknown, known)
    const why = `this endpoint has no such field.${close === undefined ? '' : ` Did you mean ${close}?`}`
    throw invalidField(unknown.slice(0, 100), why, 'unknown_parameter')
  }
  for (const [name, isRefused, why] of refused) {
    const value = body[name] ?? null
    if (value !== null && isRefused(value)) throw invalidField(String(name), why, 'unsupported_value')
  }
}
