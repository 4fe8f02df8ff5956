import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { type Static, Type } from '@sinclair/typebox'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import type { AskGateway } from '#instances/gateway/ask.ts'
import { type CronJob as Job, listCronJobs, pauseCronJob } from '#openclaw/gateway/cron-jobs.ts'
import { toMicroseconds } from '#platform/timestamps.ts'
import { DateTime, Nullable } from '#platform/typebox.ts'

const CronJob = Type.Object(
  {
    id: Type.String({ description: 'The id of the job, by OpenClaw.' }),
    name: Type.String({ description: 'Its name, by the agent.' }),
    kind: Type.String({ description: 'How OpenClaw begins it: `cron`, `at`, `every`, `on-exit` or `stream`.' }),
    when: Type.String({
      description: 'The cron expression, the time, the interval, or the command that it waits for.',
    }),
    input: Nullable(Type.String({ description: 'The message to the agent; null for a job that sends none.' })),
    paused: Type.Boolean({ description: 'Whether it does not run.' }),
    next_at: Nullable(DateTime('Its next time; null without one.')),
    last_at: Nullable(DateTime('Its last run; null before the first.')),
    last_status: Nullable(Type.String({ description: 'How the last run ended: `ok`, `error` or `skipped`.' })),
  },
  {
    additionalProperties: false,
    description: "A job of the agent's own cron.",
    examples: [
      {
        id: 'standup',
        name: 'standup',
        kind: 'cron',
        when: '0 9 * * 1-5 Europe/Berlin',
        input: 'Ask the team what is planned.',
        paused: false,
        next_at: '2026-12-07T08:00:00.000000+00:00',
        last_at: null,
        last_status: null,
      },
    ],
  },
)

const at = (ms: number | null) => (ms === null ? null : toMicroseconds(new Date(ms)))
const toCronJob = ({ nextAt, lastAt, lastStatus, ...job }: Job): Static<typeof CronJob> => ({
  ...job,
  next_at: at(nextAt),
  last_at: at(lastAt),
  last_status: lastStatus,
})

const gatewayFailures = failures(400, 404, 409, 502, 504)

/** The routes of the cron inside an agent, which its gateway keeps: they are read, and paused. */
export const cronJobRoutes: FastifyPluginAsyncTypebox<{ askGateway: AskGateway }> = async (app, { askGateway }) => {
  app.get(
    '/v1/instances/:instance_id/cron_jobs',
    {
      config: { access: 'configure' },
      schema: {
        operationId: 'listCronJobs',
        summary: "List the agent's own cron jobs",
        description:
          'Jobs that the agent has made with its tools, up to 2,000. Those of OpenClaw itself are left out. The instance ' +
          'must be `running`; a sleeping one is woken.',
        tags: ['schedules'],
        params: InstanceParams,
        response: { 200: Type.Array(CronJob), ...gatewayFailures },
      },
    },
    async ({ caller, params }) =>
      (await askGateway(caller.organizationId, params.instance_id, listCronJobs)).map(toCronJob),
  )

  app.patch(
    '/v1/instances/:instance_id/cron_jobs/:job_id',
    {
      config: { access: 'configure', event: 'cron_job.update' },
      schema: {
        operationId: 'pauseCronJob',
        summary: "Pause one of the agent's own cron jobs",
        description:
          'A paused job does not run until it goes on. The agent can change it, too. A run that has begun goes on.',
        tags: ['schedules'],
        params: Type.Object({
          ...InstanceParams.properties,
          job_id: Type.String({ description: 'The id of the job.' }),
        }),
        body: Type.Object(
          { paused: Type.Boolean({ description: 'Whether the job is paused.' }) },
          { additionalProperties: false, examples: [{ paused: true }] },
        ),
        response: { 200: CronJob, ...gatewayFailures },
      },
    },
    async ({ caller, params: { instance_id: instanceId, job_id: jobId }, body: { paused } }) => {
      const job = await askGateway(caller.organizationId, instanceId, (gateway) => pauseCronJob(gateway, jobId, paused))
      if (!job) throw new AppError('not_found', texts.cronJobNotFound)
      return toCronJob(job)
    },
  )
}
