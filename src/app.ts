import type { TypeBoxTypeProvider } from '@fastify/type-provider-typebox'
import fastify, { type FastifyBaseLogger, LogController } from 'fastify'
import { approvalRoutes } from './api/approvals/routes.ts'
import type { ChannelDeps } from './api/channels/deps.ts'
import { channelRoutes } from './api/channels/routes.ts'
import { chatRoutes } from './api/chat/routes.ts'
import { about } from './api/docs/introduction.ts'
import { docsRoutes } from './api/docs/routes.ts'
import { type EgressDeps, egressRoutes } from './api/egress/routes.ts'
import { type EventDeps, eventRoutes } from './api/events/routes.ts'
import type { FileDeps } from './api/files/deps.ts'
import { fileRoutes } from './api/files/routes.ts'
import { type HealthDeps, healthRoutes } from './api/health/routes.ts'
import { hookRoutes } from './api/hooks/routes.ts'
import { type InstanceDeps, instanceRoutes } from './api/instances/routes.ts'
import { type KeyDeps, keyRoutes } from './api/keys/routes.ts'
import { type LogDeps, logRoutes } from './api/logs/routes.ts'
import { type MetricsDeps, metricsRoutes } from './api/metrics/routes.ts'
import { modelRoutes } from './api/models/routes.ts'
import { type OrganizationDeps, organizationRoutes } from './api/organization/routes.ts'
import { type RegionDeps, regionRoutes } from './api/regions/routes.ts'
import { type ReleaseDeps, releaseRoutes } from './api/releases/routes.ts'
import { useBackground } from './api/responses/background/use-background.ts'
import { type ResponseDeps, responseRoutes } from './api/responses/routes.ts'
import { asksForWebSocket } from './api/responses/web-socket.ts'
import { type ScheduleDeps, scheduleRoutes } from './api/schedules/routes.ts'
import { type SessionDeps, sessionRoutes } from './api/sessions/routes.ts'
import { type SkillRouteDeps, skillRoutes } from './api/skills/routes.ts'
import { type SubscriptionDeps, subscriptionRoutes } from './api/subscription/routes.ts'
import { type UsageDeps, usageRoutes } from './api/usage/routes.ts'
import { type WebhookDeps, webhookRoutes } from './api/webhooks/routes.ts'
import { type CallerDeps, useApiKeys } from './http/auth.ts'
import { type BodyTimes, useBodyDeadlines } from './http/body-deadlines.ts'
import { useClosing } from './http/closing.ts'
import { answerUnroutable, clientErrorAnswer, useErrors } from './http/errors.ts'
import { useIdempotency } from './http/idempotent-posts.ts'
import { type InFlightLimits, useInFlight } from './http/in-flight.ts'
import { useInstanceIds } from './http/instance-params.ts'
import { useJsonBodies } from './http/json-body.ts'
import { useOpenApi } from './http/openapi.ts'
import { type RequestOrigins, useOrigins } from './http/origins.ts'
import { parseQuery } from './http/query.ts'
import { type RateLimits, useRateLimits } from './http/rate-limit.ts'
import { useEvents } from './http/recording.ts'
import { useRequestLog } from './http/request-log.ts'
import { serializers, strictBodies, useStrictQueries } from './http/validation.ts'
import { newId } from './platform/ids.ts'
import { type TurnDeps, useTurns } from './turns/turns.ts'

export interface AppDeps
  extends OrganizationDeps,
    KeyDeps,
    EventDeps,
    WebhookDeps,
    UsageDeps,
    SubscriptionDeps,
    ReleaseDeps,
    RegionDeps,
    InstanceDeps,
    LogDeps,
    MetricsDeps,
    EgressDeps,
    Omit<ResponseDeps, 'turns' | 'background'>,
    TurnDeps,
    ScheduleDeps,
    SessionDeps,
    ChannelDeps,
    SkillRouteDeps,
    FileDeps,
    HealthDeps,
    Omit<CallerDeps, 'requireInstance'> {
  log: FastifyBaseLogger
  limits: RateLimits
  inFlightLimits: InFlightLimits
  origins: RequestOrigins
  bodyTimes?: BodyTimes
  /** The number of proxies before Chowder: it trusts this many of the addresses in `X-Forwarded-For`. */
  trustedProxies: number
}

const bodyLimitBytes = 1024 * 1024
/** A session id is a path segment of up to 200 bytes, three characters each when encoded. */
const maxParamLength = 1024
/** For the largest upload over a slow connection. `useBodyDeadlines` ends other slow requests far sooner. */
const requestTimeoutMs = 2 * 60 * 60_000
/** Longer than the idle timeouts of common load balancers: they close first, and send no request to a closed socket. */
const keepAliveTimeoutMs = 75_000

/** A client's request id that is used unchanged. Another text could forge log lines. */
const safeRequestId = /^[\w.:-]{1,128}$/

/** Builds the API without listening. It reads no environment, and uses only `deps`. */
export async function buildApp(deps: AppDeps) {
  const app = fastify({
    loggerInstance: deps.log,
    // useRequestLog writes one line instead of two
    logController: new LogController({ disableRequestLogging: true, requestIdLogLabel: 'requestId' }),
    genReqId: ({ headers }) => {
      const given = headers['x-request-id']
      return typeof given === 'string' && safeRequestId.test(given) ? given : newId()
    },
    trustProxy: (_address, hop) => hop < deps.trustedProxies,
    bodyLimit: bodyLimitBytes,
    frameworkErrors: (_error, request, reply) => answerUnroutable(request, reply, deps.publicUrl()),
    routerOptions: { maxParamLength, querystringParser: parseQuery },
    requestTimeout: requestTimeoutMs,
    keepAliveTimeout: keepAliveTimeoutMs,
    http: {
      requireHostHeader: false, // useErrors checks it
      shouldUpgradeCallback: asksForWebSocket,
    },
    return503OnClosing: false, // useClosing lets requests finish
    clientErrorHandler: (error, socket) => {
      if (!socket.writable) return void socket.destroy()
      socket.end(clientErrorAnswer(error.code, newId(), deps.publicUrl()))
    },
  }).withTypeProvider<TypeBoxTypeProvider>()

  app.setValidatorCompiler(strictBodies)
  app.setSerializerCompiler(serializers)
  useJsonBodies(app)
  useErrors(app, deps.publicUrl)
  useRequestLog(app)
  useClosing(app, deps.isDraining)
  await useOrigins(app, deps.origins)
  useBodyDeadlines(app, deps.publicUrl, deps.bodyTimes)
  await useOpenApi(app, about)
  await app.register(docsRoutes, deps)

  await app.register(healthRoutes, deps)
  const counters = await useRateLimits(app, deps.limits)
  await app.register(async (v1) => {
    useInstanceIds(v1)
    useStrictQueries(v1)
    useApiKeys(v1, { ...deps, requireInstance: deps.findSummary }, counters)
    const inFlight = useInFlight(v1, deps.inFlightLimits)
    useEvents(v1, deps.db)
    useIdempotency(v1, deps)
    // The reference has the calls of each section in this order.
    await v1.register(organizationRoutes, { ...deps, ...counters })
    await v1.register(keyRoutes, deps)
    await v1.register(instanceRoutes, deps)
    await v1.register(logRoutes, deps)
    await v1.register(metricsRoutes, deps)
    await v1.register(egressRoutes, deps)
    const turns = useTurns(v1, deps)
    const background = useBackground(v1, { ...deps, turns })
    await v1.register(responseRoutes, { ...deps, turns, background, countTurn: counters.countRequest, inFlight })
    await v1.register(chatRoutes, { ...deps, turns })
    await v1.register(approvalRoutes, deps)
    await v1.register(scheduleRoutes, deps)
    await v1.register(hookRoutes, { ...deps, unattended: background.unattended })
    await v1.register(modelRoutes, deps)
    await v1.register(sessionRoutes, deps)
    await v1.register(channelRoutes, { ...deps, ...counters })
    await v1.register(skillRoutes, { ...deps, ...counters })
    await v1.register(fileRoutes, deps)
    await v1.register(eventRoutes, deps)
    await v1.register(webhookRoutes, deps)
    await v1.register(usageRoutes, deps)
    await v1.register(releaseRoutes, deps)
    await v1.register(regionRoutes, deps)
    await v1.register(subscriptionRoutes, deps)
  })
  return app
}
