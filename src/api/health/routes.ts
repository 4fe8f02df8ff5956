import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import { OneOf } from '#http/validation.ts'

export interface HealthDeps {
  /** Whether each thing the API stands on answers within its deadline. */
  readiness(): Promise<{ database: boolean; queue: boolean }>
}

const Health = Type.Object({ status: Type.Literal('ok') }, { examples: [{ status: 'ok' }] })

const Readiness = Type.Object(
  {
    status: OneOf(['ready', 'degraded', 'unavailable']),
    checks: Type.Object({ database: Type.Boolean(), queue: Type.Boolean() }),
  },
  {
    $id: 'Readiness',
    description:
      '`degraded`: without the queue intents are still accepted, and are worked off when it is back. `unavailable`: without the database nothing is.',
    examples: [{ status: 'ready', checks: { database: true, queue: true } }],
  },
)

/** For whoever watches this process. */
export const healthRoutes: FastifyPluginAsyncTypebox<HealthDeps> = async (app, { readiness }) => {
  const config = { access: 'public' } as const

  app.get(
    '/healthz',
    {
      config,
      schema: {
        operationId: 'getHealth',
        summary: 'Ask whether the process lives',
        description: 'Answers as long as the process does. Nothing is asked of the database or the queue.',
        tags: ['operations'],
        response: { 200: Health },
      },
    },
    async () => ({ status: 'ok' as const }),
  )

  app.get(
    '/readyz',
    {
      config,
      schema: {
        operationId: 'getReadiness',
        summary: 'Ask whether requests can be served',
        description: 'Asks the database and the queue, each for at most a second. 503 only without the database.',
        tags: ['operations'],
        response: { 200: Readiness, 503: Readiness },
      },
    },
    async (_request, reply) => {
      const checks = await readiness()
      const status = checks.database ? (checks.queue ? 'ready' : 'degraded') : 'unavailable'
      return reply.code(checks.database ? 200 : 503).send({ status, checks })
    },
  )
}
