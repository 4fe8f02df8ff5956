import type { IncomingMessage } from 'node:http'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import websocket from '@fastify/websocket'
import { Type } from '@sinclair/typebox'
import type { FastifyRequest } from 'fastify'
import { AppError } from '#errors/app-error.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import type { FindSummary } from '#instances/find.ts'
import { sessionKey } from '#openclaw/gateway/session-key.ts'
import { errorTexts } from '#turns/error-texts.ts'
import { maxTurnBytes, turnRouteConfig } from '#turns/route.ts'
import { BySession } from './schemas.ts'
import { type ConnectionDeps, closeCodes, WebSocketConnection } from './web-socket-connection.ts'
import { createFrameReader } from './web-socket-frames.ts'

const paths = /^\/v1\/instances\/[^/?]+\/(?:session\/[^/?]+\/)?responses(?:\?|$)/

const handshakeKey = /^[+/0-9A-Za-z]{22}==$/

/** Whether a request asks for a WebSocket on a path that supports one. No other request is upgraded. */
export const asksForWebSocket = ({ method, url = '', headers }: IncomingMessage): boolean =>
  method === 'GET' && headers.upgrade?.toLowerCase() === 'websocket' && paths.test(url)

/** The library would refuse these in plain text. */
function requireHandshake({ headers }: FastifyRequest): void {
  const isValid = headers['sec-websocket-version'] === '13' && handshakeKey.test(headers['sec-websocket-key'] ?? '')
  if (!isValid) throw new AppError('malformed_request', errorTexts.badHandshake)
}

/** The answer to a plain GET of such a path. */
function refuseHttp(): never {
  throw new AppError('websocket_required', errorTexts.needsWebSocket)
}

const socketRouteConfig = { ...turnRouteConfig, inFlight: 'sockets' } as const

type WebSocketDeps = Omit<ConnectionDeps, 'readFrame'> & { findSummary: FindSummary }

/**
 * The WebSocket mode of the Responses format: each text frame `response.create` is a turn, and each event of the turn
 * is a frame. End the turns before the server closes: connections close after their turn.
 */
export const webSocketRoutes: FastifyPluginAsyncTypebox<WebSocketDeps> = async (app, { findSummary, ...deps }) => {
  const connectionDeps: ConnectionDeps = { ...deps, readFrame: createFrameReader() }
  const connections = new Set<WebSocketConnection>()
  const shuttingDown = new AppError('shutting_down', errorTexts.shuttingDown)
  let isClosing = false

  await app.register(websocket, {
    // Thousands of short frames may arrive in one chunk: this gives each its own turn of the event loop.
    options: { maxPayload: maxTurnBytes, perMessageDeflate: false, allowSynchronousEvents: false },
    errorHandler: (_error, socket) => socket.terminate(),
    preClose(done) {
      isClosing = true
      for (const connection of connections) connection.end(closeCodes.serviceRestart, shuttingDown)
      done()
    },
  })

  // Node does not read data after a refused upgrade request, so the connection cannot be reused.
  app.addHook('onResponse', async ({ raw }) => {
    if (asksForWebSocket(raw)) raw.socket.destroySoon()
  })

  const sessionIdOf = ({ params }: FastifyRequest) => (params as { session_id?: string }).session_id
  const route = {
    method: 'GET',
    config: socketRouteConfig,
    handler: refuseHttp,
    async preHandler(request: FastifyRequest) {
      if (asksForWebSocket(request.raw)) requireHandshake(request)
      const { instance_id } = request.params as { instance_id: string }
      await findSummary(request.caller.organizationId, instance_id)
      sessionKey(sessionIdOf(request) ?? 'main')
    },
    wsHandler(socket, request) {
      const connection = new WebSocketConnection(connectionDeps, socket, request, sessionIdOf(request))
      connections.add(connection)
      socket.on('close', () => connections.delete(connection))
      if (isClosing) connection.end(closeCodes.serviceRestart, shuttingDown)
    },
  } satisfies Partial<Parameters<typeof app.route>[0]>
  const schema = {
    tags: ['responses'],
    description:
      'The WebSocket mode of the Responses format: each text frame `{"type": "response.create", …}` is a turn, and ' +
      'each of its events is a frame. Ask for `Upgrade: websocket`: a plain GET is a 400.',
    response: { 101: Type.Null({ description: 'The connection is a WebSocket now.' }), ...failures(400, 404) },
  }
  app.route({
    ...route,
    config: { ...socketRouteConfig, session: 'main' },
    url: '/v1/instances/:instance_id/responses',
    schema: {
      ...schema,
      operationId: 'connectResponses',
      summary: 'Talk to an agent over a WebSocket',
      params: InstanceParams,
    },
  })
  app.route({
    ...route,
    url: '/v1/instances/:instance_id/session/:session_id/responses',
    schema: {
      ...schema,
      operationId: 'connectSessionResponses',
      summary: 'Talk to an agent in a session over a WebSocket',
      params: BySession,
    },
  })
}
