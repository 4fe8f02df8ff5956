import type { TypeBoxTypeProvider } from '@fastify/type-provider-typebox'
import fastify, { type FastifyBaseLogger, LogController } from 'fastify'
import { type ChannelDeps, channelRoutes } from './channels/routes.ts'
import { type FileDeps, fileRoutes } from './files/routes.ts'
import { type InstanceDeps, instanceRoutes } from './instances/routes.ts'
import { type KeyDeps, keyRoutes } from './keys/routes.ts'
import { type OrganizationDeps, organizationRoutes } from './organization/routes.ts'
import { type FindCaller, useApiKeys } from './platform/auth.ts'
import { answerUnroutable, clientErrorAnswer, useDetailErrors } from './platform/http-errors.ts'
import { newId } from './platform/ids.ts'
import { useRequestLog } from './platform/request-log.ts'
import { strictBodies } from './platform/validation.ts'
import { type ResponseDeps, responseRoutes } from './responses/routes.ts'
import { type SessionDeps, sessionRoutes } from './sessions/routes.ts'
import { type SkillDeps, skillRoutes } from './skills/routes.ts'
import { type SubscriptionDeps, subscriptionRoutes } from './subscription/routes.ts'

export interface AppDeps
  extends OrganizationDeps,
    KeyDeps,
    SubscriptionDeps,
    InstanceDeps,
    ResponseDeps,
    SessionDeps,
    ChannelDeps,
    SkillDeps,
    FileDeps {
  findCaller: FindCaller
  log: FastifyBaseLogger
  /** Whether each thing the API stands on answers within its deadline. */
  readiness(): Promise<{ database: boolean; queue: boolean }>
}

const bodyLimitBytes = 1024 * 1024
/** A session id is a path segment of up to 200 bytes, three characters each when encoded. */
const maxParamLength = 1024
const requestTimeoutMs = 60_000
/** Longer than the idle timeouts of common load balancers, so that they close first and no request meets a closed socket. */
const keepAliveTimeoutMs = 75_000

/** What a request id may be to be taken over: anything else could forge log lines. */
const safeRequestId = /^[\w.:-]{1,128}$/

/** Builds the API without listening: no environment, no sockets, no globals. Tests hand in their own deps. */
export async function buildApp(deps: AppDeps) {
  const app = fastify({
    loggerInstance: deps.log,
    logController: new LogController({ disableRequestLogging: true }), // two lines a request; useRequestLog writes one
    genReqId: ({ headers }) => {
      const given = headers['x-request-id']
      return typeof given === 'string' && safeRequestId.test(given) ? given : newId()
    },
    bodyLimit: bodyLimitBytes,
    frameworkErrors: answerUnroutable,
    routerOptions: { maxParamLength },
    requestTimeout: requestTimeoutMs,
    keepAliveTimeout: keepAliveTimeoutMs,
    return503OnClosing: true,
    clientErrorHandler: (error, socket) => {
      if (socket.writable) socket.end(clientErrorAnswer('code' in error ? String(error.code) : undefined))
      else socket.destroy()
    },
  }).withTypeProvider<TypeBoxTypeProvider>()

  app.setValidatorCompiler(strictBodies)
  app.removeAllContentTypeParsers() // only JSON is spoken here
  const parseJson = app.getDefaultJsonParser('error', 'error')
  app.addContentTypeParser('application/json', { parseAs: 'string' }, (request, body: string, done) => {
    if (body === '')
      done(null, undefined) // the schema says whether one is needed
    else void parseJson(request, body, done)
  })
  useDetailErrors(app)
  useRequestLog(app)

  app.get('/healthz', { config: { access: 'public' } }, async () => ({ status: 'ok' }))
  app.get('/readyz', { config: { access: 'public' } }, async (_request, reply) => {
    const { database, queue } = await deps.readiness()
    // Without the queue intents are still accepted, and the sweep rings for them later.
    const status = database ? (queue ? 'ready' : 'degraded') : 'unavailable'
    return reply.code(database ? 200 : 503).send({ status, checks: { database, queue } })
  })

  await app.register(async (v1) => {
    useApiKeys(v1, deps.findCaller)
    await v1.register(organizationRoutes, deps)
    await v1.register(keyRoutes, deps)
    await v1.register(subscriptionRoutes, deps)
    await v1.register(instanceRoutes, deps)
    await v1.register(responseRoutes, deps)
    await v1.register(sessionRoutes, deps)
    await v1.register(channelRoutes, deps)
    await v1.register(skillRoutes, deps)
    await v1.register(fileRoutes, deps)
  })
  return app
}
