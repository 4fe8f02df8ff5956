import { STATUS_CODES } from 'node:http'
import { Type } from '@sinclair/typebox'
import type { FastifyError, FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { isDatabaseDown } from '#database/outage.ts'
import { AppError, type ErrorKind } from '#platform/errors.ts'
import { newId } from '#platform/ids.ts'
import { texts } from '#platform/texts.ts'
import { docUrl, type ErrorCode, errorCodes, kindOf, statusOf } from './error-codes.ts'
import { faultsMessage, type ValidationFault, validationFaults } from './validation-faults.ts'

const Fault = Type.Object({
  loc: Type.Array(Type.Union([Type.String(), Type.Integer()])),
  msg: Type.String(),
  type: Type.String(),
})

/**
 * The documented error body. Beside `doc_url`, the fields of `error` occur only on the routes that OpenAI clients call.
 */
export const ErrorBody = Type.Object(
  {
    detail: Type.Union([Type.String(), Type.Object({ error: Type.String() }), Type.Array(Fault)]),
    error: Type.Object({
      message: Type.Optional(Type.String()),
      type: Type.Optional(Type.String()),
      code: Type.Optional(Type.Union([Type.String(), Type.Null()])),
      param: Type.Optional(Type.String({ description: 'The field that is at fault.' })),
      doc_url: Type.String({ description: 'The page that explains the error, with its code as the anchor.' }),
    }),
  },
  { $id: 'Error' },
)

export type Detail = string | { error: string } | ValidationFault[]

/** The kinds whose `detail` is an object with the message in `error`. */
const kindsWithObject = new Set<ErrorKind>(['gateway_unreachable', 'gateway_timeout'])

/** The kind and message that Fastify's own refusals are answered with. */
const fastifyCodes: Partial<Record<string, [ErrorKind, string]>> = {
  FST_ERR_CTP_INVALID_MEDIA_TYPE: ['unsupported_media', texts.sendJson],
  FST_ERR_CTP_BODY_TOO_LARGE: ['too_large', texts.bodyTooLarge],
  FST_ERR_CTP_EMPTY_JSON_BODY: ['invalid', texts.emptyBody],
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: ['invalid', texts.wrongContentLength],
}

/** The expected failure that an error stands for; null when the error is a bug. */
export function toAppError(error: FastifyError | AppError): AppError | null {
  if (error instanceof AppError) return error
  const known = fastifyCodes[error.code]
  if (known) return new AppError(known[0], known[1], { cause: error })
  if (!isDatabaseDown(error)) return null
  return new AppError('unavailable', texts.databaseDown, { cause: error, retryAfterSeconds: 1 })
}

/** The `type` of an error in OpenAI's formats. */
export const openaiType = (status: number) => {
  if (status === 401) return 'authentication_error'
  if (status === 403) return 'permission_error'
  if (status === 429) return 'rate_limit_error'
  return status < 500 ? 'invalid_request_error' : 'server_error'
}

const messageOf = (detail: Detail): string => {
  if (typeof detail === 'string') return detail
  return Array.isArray(detail) ? faultsMessage(detail) : detail.error
}

interface Failure {
  status: number
  /** The code whose explanation `doc_url` links to. */
  code: ErrorCode
  detail: Detail
  /** The `code` and `param` of OpenAI's format. */
  openai: { code: ErrorCode | null; param?: string | undefined }
}

function expectedFailure({ kind, code, message, param }: AppError): Failure {
  const detail = kindsWithObject.has(kind) ? { error: message } : message
  return { status: statusOf(kind), code, detail, openai: { code, param } }
}

function otherFailure(error: FastifyError, hasBody: boolean): Failure {
  if (error.validation) {
    const detail = validationFaults(error, hasBody)
    const code = 'unprocessable'
    return { status: statusOf(code), code, detail, openai: { code, param: detail[0]?.loc.slice(1).join('.') } }
  }
  const { statusCode: status = 500, message } = error
  // The messages of Fastify's own refusals are safe to show; the message of a bug is not.
  return status < 500
    ? { status, code: kindOf(status) ?? 'invalid', detail: message, openai: { code: null } }
    : { status, code: 'internal', detail: texts.internal, openai: { code: null } }
}

const errorBody = (publicUrl: string, code: ErrorCode, detail: Detail) => ({
  detail,
  error: { doc_url: docUrl(publicUrl, code) },
})

function openaiErrorBody(publicUrl: string, { status, code, detail, openai }: Failure) {
  const { param } = openai
  const error = {
    message: messageOf(detail),
    type: openaiType(status),
    code: openai.code,
    ...(param && { param }),
    doc_url: docUrl(publicUrl, code),
  }
  return { detail, error }
}

/**
 * Answers every error as `ErrorBody`. The log has the cause of a 5xx, and the answer does not. Every answer has the id
 * of its request in `x-request-id`.
 */
export function useErrors(app: FastifyInstance, publicUrl: () => string): void {
  app.addHook('onRequest', (request, reply, done) => {
    reply.header('x-request-id', request.id)
    // With `requireHostHeader: false` this check is ours: Node would answer without a body.
    const lacksHost = request.raw.httpVersion === '1.1' && request.headers.host === undefined
    done(lacksHost ? new AppError('invalid', texts.noHost) : undefined)
  })
  app.server.on('checkExpectation', (_request, response) => {
    const body = JSON.stringify(errorBody(publicUrl(), 'expectation_failed', texts.noExpectations))
    response.writeHead(417, {
      'content-type': 'application/json',
      'content-length': Buffer.byteLength(body),
      'x-request-id': newId(),
      connection: 'close',
    })
    response.end(body)
  })
  app.setErrorHandler<FastifyError | AppError>((thrown, request, reply) => {
    const error = toAppError(thrown)
    const failure = error ? expectedFailure(error) : otherFailure(thrown as FastifyError, request.body !== undefined)
    const { status, code, detail } = failure
    const { openaiErrors } = request.routeOptions.config
    if (status >= 500) {
      const organizationId = request.caller?.organizationId
      request.log.error({ err: thrown, organizationId, url: request.url }, 'request failed')
    }
    if (error?.retryAfterSeconds !== undefined) reply.header('retry-after', error.retryAfterSeconds)
    // A 409 is about the state of the instance: the automatic retries of OpenAI clients cannot help.
    if (error?.doNotRetry || (openaiErrors && status === 409)) reply.header('x-should-retry', 'false')
    return reply
      .code(status)
      .send(openaiErrors ? openaiErrorBody(publicUrl(), failure) : errorBody(publicUrl(), code, detail))
  })
  app.setNotFoundHandler(({ method, url }, reply) => {
    const detail = texts.noRoute(method, url.split('?')[0] ?? '')
    return reply.code(404).send(errorBody(publicUrl(), 'unknown_route', detail))
  })
}

const unparseable: Partial<Record<string, 'headers_too_large' | 'timed_out'>> = {
  HPE_HEADER_OVERFLOW: 'headers_too_large',
  ERR_HTTP_REQUEST_TIMEOUT: 'timed_out',
}

/**
 * The whole answer, as bytes for the socket, to a request that Node cannot parse. `nodeCode` is the code of Node's
 * error.
 */
export function clientErrorAnswer(nodeCode: string | undefined, requestId: string, publicUrl: string): string {
  const code = unparseable[nodeCode ?? ''] ?? 'malformed_request'
  const { status } = errorCodes[code]
  const reason = STATUS_CODES[status]
  const body = JSON.stringify(errorBody(publicUrl, code, `${reason}.`))
  const lines = [
    `HTTP/1.1 ${status} ${reason}`,
    'content-type: application/json',
    `content-length: ${Buffer.byteLength(body)}`,
    `x-request-id: ${requestId}`,
    'connection: close',
  ]
  return `${lines.join('\r\n')}\r\n\r\n${body}`
}

/** Answers a path that the router refuses before any route: one that cannot be decoded, or an id that is too long. */
export function answerUnroutable(request: FastifyRequest, reply: FastifyReply, publicUrl: string): void {
  const detail = request.url.startsWith('/v1/instances/') ? texts.instanceNotFound : texts.notFound
  void reply
    .header('x-request-id', request.id)
    .code(404)
    .send(errorBody(publicUrl, 'not_found', detail))
}
