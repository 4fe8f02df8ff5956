import { STATUS_CODES } from 'node:http'
import { Type } from '@sinclair/typebox'
import type { FastifyError, FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { AppError, type ErrorKind, statusOf } from '#platform/errors.ts'
import { newId } from '#platform/ids.ts'
import { texts } from '#platform/texts.ts'

const Fault = Type.Object({
  loc: Type.Array(Type.Union([Type.String(), Type.Integer()])),
  msg: Type.String(),
  type: Type.String(),
})

/** The documented error body. `error` stands beside `detail` only on the routes that OpenAI clients call. */
export const ErrorBody = Type.Object(
  {
    detail: Type.Union([Type.String(), Type.Object({ error: Type.String() }), Type.Array(Fault)]),
    error: Type.Optional(
      Type.Object({
        message: Type.String(),
        type: Type.String(),
        code: Type.Union([Type.String(), Type.Null()]),
        param: Type.Optional(Type.String({ description: 'The field that is at fault.' })),
      }),
    ),
  },
  { $id: 'Error' },
)

type Thrown = FastifyError | AppError

/** Faults that one answer lists: nobody reads more, and a body may have thousands. */
const maxFaults = 20
const nested = new Set<ErrorKind>(['gateway_unreachable', 'gateway_timeout'])

const parts = { body: 'body', querystring: 'query', params: 'path', headers: 'header' }

/** Where Ajv stood, as `loc`: the part of the request, then the path in it; a missing or unknown property is named itself. */
function faultsIn(error: Pick<FastifyError, 'validation' | 'validationContext'>) {
  const part = parts[error.validationContext ?? 'body']
  return (error.validation ?? []).slice(0, maxFaults).map(({ instancePath, keyword, message, params }) => {
    const path = instancePath.split('/').slice(1)
    const named = params.missingProperty ?? params.additionalProperty
    const allowed = Array.isArray(params.allowedValues) ? `: ${params.allowedValues.join(', ')}` : ''
    const unknown = keyword === 'additionalProperties' ? 'is not a known field' : undefined
    return {
      loc: [part, ...path, ...(typeof named === 'string' ? [named] : [])],
      msg: `${unknown ?? message ?? 'is not valid'}${allowed}`,
      type: keyword,
    }
  })
}

/** What the database, or the way to it, refused or cut, its disk full (53100): our dependency is down, the request was fine. */
const databaseDown = new Set('57P01 57P02 57P03 08000 08003 08006 25006 53100 53300 55P03 57014'.split(' '))

/** What the database's client says of a connection that has ended, or could not be had. */
const connectionEnded =
  /^(Connection terminated|timeout exceeded when trying to connect|Query read timeout|Client (was closed|has encountered))/

/** Of a socket's system calls; a file that is missing has the same codes. A container that is away has no address. */
const connectionCut = new Set(
  'ECONNREFUSED ECONNRESET EHOSTUNREACH ENETUNREACH ENOENT ENOTFOUND EAI_AGAIN EPIPE ETIMEDOUT'.split(' '),
)
const socketCalls = new Set(['connect', 'getaddrinfo', 'read', 'write'])

function isDatabaseDown(error: unknown): boolean {
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    const code = 'code' in cause ? String(cause.code) : ''
    if (databaseDown.has(code)) return true
    if (connectionCut.has(code) && 'syscall' in cause && socketCalls.has(String(cause.syscall))) return true
    if (connectionEnded.test(cause.message)) return true
    if (cause instanceof AggregateError && cause.errors.some(isDatabaseDown)) return true
  }
  return false
}

/** Fastify's own refusals, in our words and statuses. */
const fastifyCodes: Partial<Record<string, [ErrorKind, string]>> = {
  FST_ERR_CTP_INVALID_MEDIA_TYPE: ['unsupported_media', 'Send the body as application/json.'],
  FST_ERR_CTP_BODY_TOO_LARGE: ['too_large', 'The body is too large.'],
  FST_ERR_CTP_INVALID_JSON_BODY: ['invalid', 'The body is not valid JSON.'],
  FST_ERR_CTP_EMPTY_JSON_BODY: ['invalid', 'The body is empty; send a JSON object.'],
  FST_ERR_CTP_INVALID_CONTENT_LENGTH: ['invalid', 'The body has another length than Content-Length says.'],
}

/** What was thrown as an expected failure, if it is one. */
export function toAppError(error: Thrown): AppError | null {
  if (error instanceof AppError) return error
  const known = fastifyCodes[error.code]
  if (known) return new AppError(known[0], known[1], { cause: error })
  if (isDatabaseDown(error)) {
    return new AppError('unavailable', texts.databaseDown, {
      cause: error,
      retryAfterSeconds: 1,
    })
  }
  return null
}

/** The `type` of an error in OpenAI's formats. */
export const openaiType = (status: number) => {
  if (status === 401) return 'authentication_error'
  if (status === 403) return 'permission_error'
  if (status === 429) return 'rate_limit_error'
  return status < 500 ? 'invalid_request_error' : 'server_error'
}

/** The faults of what does not fit its schema, in one line. */
export const inOneLine = (validation: NonNullable<FastifyError['validation']>): string =>
  messageOf(faultsIn({ validation }))

const messageOf = (detail: unknown): string => {
  if (typeof detail === 'string') return detail
  if (Array.isArray(detail)) return detail.map((fault) => `${fault.loc.join('.')} ${fault.msg}`).join('; ')
  return (detail as { error: string }).error
}

function send(
  request: FastifyRequest,
  reply: FastifyReply,
  status: number,
  detail: unknown,
  code: string | null,
  param: string | null = null,
) {
  const { openaiErrors } = request.routeOptions.config
  const error = { message: messageOf(detail), type: openaiType(status), code, ...(param && { param }) }
  // A 409 is the instance's state: repeating the turn by itself, as OpenAI clients do, cannot help.
  if (openaiErrors && status === 409) reply.header('x-should-retry', 'false')
  return reply.code(status).send(openaiErrors ? { detail, error } : { detail })
}

/**
 * Turns whatever was thrown into `{"detail": …}`. A 5xx keeps its cause in the log and out of the answer; every
 * answer carries the request's id in `x-request-id`.
 */
export function useDetailErrors(app: FastifyInstance): void {
  app.addHook('onRequest', (request, reply, done) => {
    reply.header('x-request-id', request.id)
    // Left to us by `requireHostHeader: false`, as Node would answer it without a body.
    const lacksHost = request.raw.httpVersion === '1.1' && request.headers.host === undefined
    done(lacksHost ? new AppError('invalid', texts.noHost) : undefined)
  })
  app.server.on('checkExpectation', (_request, response) => {
    const body = JSON.stringify({ detail: texts.noExpectations })
    response.writeHead(417, {
      'content-type': 'application/json',
      'content-length': Buffer.byteLength(body),
      'x-request-id': newId(),
      connection: 'close',
    })
    response.end(body)
  })
  app.setErrorHandler<Thrown>((thrown, request, reply) => {
    if (!(thrown instanceof AppError) && thrown.validation) {
      const faults = faultsIn(thrown)
      return send(request, reply, 422, faults, 'unprocessable', faults[0]?.loc.slice(1).join('.') || null)
    }
    const error = toAppError(thrown)
    const status = error ? statusOf[error.kind] : ((thrown as FastifyError).statusCode ?? 500)
    if (status >= 500) {
      request.log.error(
        { err: thrown, organizationId: request.caller?.organizationId, url: request.url },
        'request failed',
      )
    }
    if (error?.retryAfterSeconds !== undefined) reply.header('retry-after', error.retryAfterSeconds)
    if (error?.doNotRetry) reply.header('x-should-retry', 'false')
    if (error) {
      const detail = nested.has(error.kind) ? { error: error.message } : error.message
      return send(request, reply, status, detail, error.code ?? error.kind, error.param)
    }
    // Fastify's other refusals have safe messages; what is ours and unexpected is a bug and says nothing.
    return send(request, reply, status, status < 500 ? thrown.message : 'Internal error.', null)
  })
  app.setNotFoundHandler((request, reply) =>
    reply.code(404).send({ detail: `No route ${request.method} ${request.url.split('?')[0]}.` }),
  )
}

/** How Node answers what it cannot parse as HTTP, before any route: in the documented shape. */
export function clientErrorAnswer(code: string | undefined, requestId: string): string {
  const status = code === 'HPE_HEADER_OVERFLOW' ? 431 : code === 'ERR_HTTP_REQUEST_TIMEOUT' ? 408 : 400
  const body = JSON.stringify({ detail: `${STATUS_CODES[status]}.` })
  return `HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\nx-request-id: ${requestId}\r\nconnection: close\r\n\r\n${body}`
}

/** What the router refuses before any route: a path that cannot be decoded, or an id that is too long, is an unknown one. */
export function answerUnroutable(_error: FastifyError, request: FastifyRequest, reply: FastifyReply): void {
  const detail = request.url.startsWith('/v1/instances/') ? texts.instanceNotFound : 'Not found.'
  void reply.header('x-request-id', request.id).code(404).send({ detail })
}
