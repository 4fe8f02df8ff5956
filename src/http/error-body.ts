import { type Static, Type } from '@sinclair/typebox'
import { type ErrorCode, errorCodes } from '#errors/codes.ts'
import { Nullable, Uri } from '#platform/typebox.ts'
import { faultsMessage, type ValidationFault } from './validation-faults.ts'

const Fault = Type.Object({
  loc: Type.Array(Type.Union([Type.String(), Type.Integer()]), {
    description: 'The place: the part of the request (`body`, `query`, `path` or `header`), then the path in it.',
  }),
  msg: Type.String({ description: 'The rule that is broken.' }),
  type: Type.String({ description: 'The name of the rule.' }),
})

/** The code of an error in the document. */
export const Code = Type.Unsafe<ErrorCode>({
  $id: 'ErrorCode',
  type: 'string',
  enum: Object.keys(errorCodes).sort(),
  description:
    'The reason of a failure, for programs. `/docs/errors` explains each. The list may grow: treat a code that you ' +
    'do not know as its status.',
})

const ErrorObject = Type.Object(
  {
    type: Type.String({ description: 'The group of the error, as OpenAI clients know it: `invalid_request_error` …' }),
    code: Code,
    param: Nullable(Type.String({ description: 'The field that is at fault, if it is one field: `metadata.team`.' })),
    message: Type.String({ description: '`detail` as one text, and what else helps.' }),
    doc_url: Uri('The page that explains the code.'),
    request_id: Type.String({
      description: 'The id of the request, as in `x-request-id`. Name it when you ask for help.',
    }),
  },
  { description: 'The failure for programs.' },
)
type ErrorObject = Static<typeof ErrorObject>

/** The body of every failure. */
export const ErrorBody = Type.Object(
  {
    detail: Type.Union(
      [Type.String(), Type.Object({ error: Type.String({ description: 'The message.' }) }), Type.Array(Fault)],
      {
        description: 'The message for people: a text, in an object when a gateway is the cause, or a list of faults.',
      },
    ),
    error: ErrorObject,
  },
  { $id: 'ApiError' },
)

type Detail = string | { error: string } | ValidationFault[]

/** A failure before its conversion to an answer. */
export interface Failure {
  code: ErrorCode
  detail: Detail
  param?: string | undefined
  /** Appended to the text of `detail` in `message`. */
  hint?: string | undefined
}

/** The parts of an error that depend on its request and this server. */
export interface ErrorContext {
  requestId: string
  /** The base URL for clients, without a trailing slash. */
  publicUrl: string
}

function messageOf(detail: Detail): string {
  if (typeof detail === 'string') return detail
  return Array.isArray(detail) ? faultsMessage(detail) : detail.error
}

/** The URL of a code's explanation. */
const docUrl = (publicUrl: string, code: ErrorCode): string => `${publicUrl}/docs/errors#${code}`

export function errorObject(
  { code, detail, param, hint }: Failure,
  { requestId, publicUrl }: ErrorContext,
): ErrorObject {
  const message = messageOf(detail)
  return {
    type: errorCodes[code].type,
    code,
    param: param ?? null,
    message: hint === undefined ? message : `${message} ${hint}`,
    doc_url: docUrl(publicUrl, code),
    request_id: requestId,
  }
}

export const errorBody = (failure: Failure, context: ErrorContext) => ({
  detail: failure.detail,
  error: errorObject(failure, context),
})
