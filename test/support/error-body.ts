import { expect } from 'vitest'
import { type ErrorCode, errorCodes } from '#errors/codes.ts'

/** The whole body of an error, for `toEqual`. */
export const errorBody = (
  code: ErrorCode,
  detail: unknown,
  error: { param?: string | undefined; message?: unknown } = {},
) => ({
  detail,
  error: {
    type: errorCodes[code].type,
    code,
    param: error.param ?? null,
    message: error.message ?? (typeof detail === 'string' ? detail : expect.any(String)),
    doc_url: `http://chowder.test/docs/errors#${code}`,
    request_id: expect.any(String),
  },
})

const fields = ['code', 'doc_url', 'message', 'param', 'request_id', 'type']

/**
 * Throws unless an error has every field, a code of this status, and the id of
 * its request.
 */
export function requireError(status: number, error: unknown, requestId?: unknown): void {
  const object = (error ?? {}) as Record<string, unknown>
  const code = String(object.code)
  const { status: statusOfCode, type } = errorCodes[code as ErrorCode] ?? {}
  const isWhole =
    statusOfCode === status &&
    object.type === type &&
    JSON.stringify(Object.keys(object).sort()) === JSON.stringify(fields) &&
    String(object.doc_url).endsWith(`/docs/errors#${code}`) &&
    typeof object.message === 'string' &&
    object.message !== '' &&
    (object.param === null || (typeof object.param === 'string' && object.param !== '')) &&
    (requestId === undefined ? typeof object.request_id === 'string' : object.request_id === requestId)
  if (!isWhole) throw new Error(`${status} without a whole error: ${JSON.stringify(error)}, request ${requestId}`)
}

/** Throws unless the body of a failure has `detail` and a whole error. */
export function requireErrorBody(status: number, body: unknown, requestId?: unknown): void {
  const { detail, error } = (body ?? {}) as { detail?: unknown; error?: unknown }
  if (detail === undefined) throw new Error(`${status} without detail: ${JSON.stringify(body)}`)
  requireError(status, error, requestId)
}
