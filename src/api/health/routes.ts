import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import { Nullable, OneOf } from '#platform/typebox.ts'
import { commit, version } from '#platform/version.ts'

export interface HealthDeps {
  /** Whether the services that the API depends on answer in time. */
  readiness(): Promise<{ database: boolean; queue: boolean; disk: boolean; workers: number | null }>
  /** A sentence on how agents are isolated. */
  isolation(): string
  /** Whether the server is about to stop, so that balancers send their requests elsewhere. */
  isDraining(): boolean
}

const Health = Type.Object(
  { status: Type.Literal('ok', { description: 'Always `ok`.' }) },
  { examples: [{ status: 'ok' }] },
)

const Readiness = Type.Object(
  {
    status: OneOf(
      ['ready', 'degraded', 'unavailable', 'draining'],
      '`degraded`: the queue is away, and requests are still accepted, or the disk is almost full. ' +
        '`unavailable`: the database is away. ' +
        '`draining`: the process ends, and takes no new requests soon.',
    ),
    checks: Type.Object(
      {
        database: Type.Boolean({ description: 'Whether the database answers.' }),
        queue: Type.Boolean({ description: 'Whether the queue answers.' }),
        disk: Type.Boolean({ description: 'Whether the disk of the server has room for more than its database.' }),
      },
      { description: 'The parts that a request needs.' },
    ),
    workers: Nullable(
      Type.Integer({
        description:
          'The number of workers that run. With 0 changes are accepted, and wait for a worker. null when the ' +
          'database is unavailable.',
      }),
    ),
    isolation: Type.String({
      description:
        'How agents are isolated from their host and from each other, and why they are not; with several regions in each.',
    }),
    version: Type.String({ description: 'The version of Chowder.' }),
    commit: Type.String({
      description: 'The first 12 digits of the commit that this Chowder was built from, or `unknown`.',
    }),
  },
  {
    $id: 'Readiness',
    description:
      '`degraded`: the queue is unavailable; changes are accepted, and done when it is back. ' +
      '`unavailable`: the database is unavailable, and every call fails. `draining`: the process ends.',
    examples: [
      {
        status: 'ready',
        checks: { database: true, queue: true, disk: true },
        workers: 2,
        isolation:
          'Each agent is isolated in a jail: it sees no file, process or network of this machine or of other agents.',
        version: '0.1.0',
        commit: '5ca09d487fab',
      },
    ],
  },
)

const statusOf = ({ database, queue, disk }: { database: boolean; queue: boolean; disk: boolean }) =>
  database ? (queue && disk ? 'ready' : 'degraded') : 'unavailable'

/** The routes for monitoring. */
export const healthRoutes: FastifyPluginAsyncTypebox<HealthDeps> = async (app, deps) => {
  const { readiness, isDraining, isolation } = deps
  const config = { access: 'public', answersEverybody: true } as const

  app.get(
    '/healthz',
    {
      config,
      schema: {
        operationId: 'getHealth',
        summary: 'Check that the process is alive',
        description: 'Answers as long as the process runs. It does not check the database or the queue.',
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
        summary: 'Check that the server can serve requests',
        description:
          'Checks the database and the queue, each for at most a second, and counts the workers. 503 only without ' +
          'the database, and while the process ends.',
        tags: ['operations'],
        response: { 200: Readiness, 503: Readiness },
      },
    },
    async (_request, reply) => {
      const { workers, ...checks } = await readiness()
      const status = isDraining() ? 'draining' : statusOf(checks)
      const code = status === 'draining' || status === 'unavailable' ? 503 : 200
      return reply.code(code).send({ status, checks, workers, isolation: isolation(), version, commit })
    },
  )
}
