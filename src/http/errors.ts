import { STATUS_CODES } from 'node:http'
import type { FastifyError, FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { isDatabaseDown } from '#database/outage.ts'
import { AppError } from '#errors/app-error.ts'
import { type ErrorCode, type ErrorKind, errorCodes, kindOf } from '#errors/codes.ts'
import { texts } from '#errors/texts.ts'
import { isId, newId } from '#platform/ids.ts'
import { errorBody, type Failure } from './error-body.ts'
import { logFailure } from './failure-log.ts'
import { logFieldsOf } from './request-log.ts'
import { useUnknownRoutes } from './unknown-routes.ts'
import { idempotencyFault, paramOf, validationFaults } from './validation-faults.ts'

/** No cache keeps an answer, which may contain a key, and no browser interprets JSON as another type. */
const safeHeaders = { 'cache-control': 'no-store', 'x-content-type-options': 'nosniff' }

/** The number of Host headers: Node keeps only the first, and a proxy may have used another. */
const hostsOf = (rawHeaders: readonly string[]) =>
  rawHeaders.filter((name, at) => at % 2 === 0 && name.toLowerCase() === 'host').length

/** The kinds with an object as `detail`, with the message in `error`. */
const kindsWithObject = new Set<ErrorKind>(['gateway_unreachable', 'gateway_timeout'])

/** The code and message for Fastify's own refusals. */
const fastifyCodes: Partial<Record<string, [ErrorCode, string]>> = {
  FST_ERR_CTP_INVALID_MEDIA_TYPE: ['unsupported_media', texts.sendJson],
  FST_ERR_CTP_BODY_TOO_LARGE: ['too_large', texts.bodyTooLarge],
  FST_ERR_CTP_EMPTY_JSON_BODY: ['invalid_json', texts.emptyBody],
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: ['malformed_request', texts.wrongContentLength],
}

/** The expected failure for an error; null when the error is a bug. */
export function toAppError(error: FastifyError | AppError): AppError | null {
  if (error instanceof AppError) return error
  const known = fastifyCodes[error.code]
  if (known) return new AppError(known[0], known[1], { cause: error })
  if (!isDatabaseDown(error)) return null
  return new AppError('unavailable', texts.databaseDown, { cause: error, retryAfterSeconds: 1 })
}

const expectedFailure = ({ kind, code, message, param, hint }: AppError): Failure => ({
  code,
  detail: kindsWithObject.has(kind) ? { error: message } : message,
  param,
  hint,
})

/** The code for a refusal of Fastify that has its reason only in the message. */
function generalCode(status: number): ErrorCode {
  const kind = kindOf(status)
  return kind !== undefined && kind in errorCodes ? (kind as ErrorCode) : 'invalid'
}

function otherFailure(error: FastifyError, hasBody: boolean): Failure & { status?: number } {
  if (error.validation) {
    const detail = validationFaults(error, hasBody)
    const isKeyReused = detail.some(({ type }) => type === idempotencyFault)
    return { code: isKeyReused ? 'idempotency_key_reused' : 'validation_failed', detail, param: paramOf(detail) }
  }
  const { statusCode: status = 500, message } = error
  // The messages of Fastify's own refusals are safe to show; the message of a bug is not.
  return status < 500
    ? { status, code: generalCode(status), detail: message }
    : { code: 'internal', detail: texts.internal }
}

/** The failure that answers an error. `hasBody`: whether the request had a body. */
export function failureOf(thrown: FastifyError | AppError, hasBody: boolean): Failure & { status: number } {
  const error = toAppError(thrown)
  const failure = error ? expectedFailure(error) : otherFailure(thrown as FastifyError, hasBody)
  return { status: errorCodes[failure.code].status, ...failure }
}

/**
 * Answers every error as `ErrorBody`. The log has the cause of a 5xx, and the answer does not. Every answer has the id
 * of its request in `x-request-id`.
 */
export function useErrors(app: FastifyInstance, publicUrl: () => string): void {
  const bodyFor = (failure: Failure, { id }: FastifyRequest) =>
    errorBody(failure, { requestId: id, publicUrl: publicUrl() })
  // The default joins all faults into one text. The answer uses `validation` instead.
  app.setSchemaErrorFormatter(() => new Error('the request does not fit its schema'))
  app.addHook('onRequest', (request, reply, done) => {
    reply.headers({ 'x-request-id': request.id, ...safeHeaders })
    // With `requireHostHeader: false` this code checks it: Node would answer without a body.
    const hasOneHost = request.raw.httpVersion !== '1.1' || hostsOf(request.raw.rawHeaders) === 1
    done(hasOneHost ? undefined : new AppError('malformed_request', texts.oneHost))
  })
  app.server.on('checkExpectation', (_request, response) => {
    const requestId = newId()
    const failure: Failure = { code: 'expectation_failed', detail: texts.noExpectations }
    const body = JSON.stringify(errorBody(failure, { requestId, publicUrl: publicUrl() }))
    response.writeHead(417, {
      'content-type': 'application/json',
      'content-length': Buffer.byteLength(body),
      'x-request-id': requestId,
      connection: 'close',
    })
    response.end(body)
  })
  const answerUnknown = useUnknownRoutes(app, (request, reply, failure) =>
    reply.code(errorCodes[failure.code].status).send(bodyFor(failure, request)),
  )
  app.setErrorHandler<FastifyError | AppError>((thrown, request, reply) => {
    // Fastify reads the body before it reports a missing route.
    if (request.is404 && !(thrown instanceof AppError)) return answerUnknown(request, reply)
    const error = toAppError(thrown)
    const { status, ...failure } = failureOf(thrown, request.body !== undefined)
    if (status >= 500) logFailure(request.log, error ?? thrown, logFieldsOf(request), 'request failed')
    if (status === 401) {
      const hasKey = /^bearer \S/i.test(request.headers.authorization ?? '')
      reply.header('www-authenticate', hasKey ? 'Bearer error="invalid_token"' : 'Bearer')
    }
    const mayBeSoon = status === 429 || status === 503
    const retryAfterSeconds = error?.retryAfterSeconds ?? (mayBeSoon ? 1 : undefined)
    if (retryAfterSeconds !== undefined) reply.header('retry-after', retryAfterSeconds)
    // A 409 concerns the state of the instance: the automatic retries of OpenAI clients cannot help.
    const isForOpenai = request.routeOptions.config.openaiErrors === true
    if (error?.doNotRetry || (isForOpenai && status === 409)) reply.header('x-should-retry', 'false')
    return reply.code(status).send(bodyFor(failure, request))
  })
}

const unparseable: Partial<Record<string, ErrorCode>> = {
  HPE_HEADER_OVERFLOW: 'headers_too_large',
  ERR_HTTP_REQUEST_TIMEOUT: 'timed_out',
}

/**
 * The whole answer, as bytes for the socket, to a request that Node cannot parse. `nodeCode` is Node's error code;
 * `detail` defaults to the name of the status.
 */
export function clientErrorAnswer(
  nodeCode: string | undefined,
  requestId: string,
  publicUrl: string,
  detail?: string,
): string {
  const code = unparseable[nodeCode ?? ''] ?? 'malformed_request'
  const { status } = errorCodes[code]
  const reason = STATUS_CODES[status]
  const body = JSON.stringify(errorBody({ code, detail: detail ?? `${reason}.` }, { requestId, publicUrl }))
  const lines = [
    `HTTP/1.1 ${status} ${reason}`,
    'content-type: application/json',
    `content-length: ${Buffer.byteLength(body)}`,
    `x-request-id: ${requestId}`,
    'connection: close',
  ]
  return `${lines.join('\r\n')}\r\n\r\n${body}`
}

const instancePath = /^\/v1\/instances\/([^/?]*)/

/** The failure of a path that cannot be decoded, or with a segment that is too long. */
function unroutable(url: string): Failure {
  const [, id] = instancePath.exec(url) ?? []
  const isInstanceWrong = id !== undefined && !isId(id)
  return isInstanceWrong
    ? { code: 'instance_not_found', detail: texts.instanceNotFound, hint: texts.noInstanceId(id) }
    : { code: 'malformed_request', detail: texts.malformedPath }
}

/** Answers a path that the router refuses before any route. */
export function answerUnroutable(request: FastifyRequest, reply: FastifyReply, publicUrl: string): void {
  const failure = unroutable(request.url)
  void reply
    .headers({ 'x-request-id': request.id, ...safeHeaders })
    .code(errorCodes[failure.code].status)
    .send(errorBody(failure, { requestId: request.id, publicUrl }))
}
