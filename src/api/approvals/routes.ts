import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import { getInstance } from '#instances/row.ts'
import { publicStatus } from '#instances/status.ts'
import { listApprovals } from '#openclaw/gateway/approvals.ts'
import { plainText, Uuid } from '#platform/typebox.ts'
import { Approval, toApproval } from '#turns/approval-schema.ts'
import { type AnswerParts, answerApproval, findApproval } from './answer.ts'
import { approvalPages, type PageDeps } from './page.ts'

export type ApprovalDeps = AnswerParts & PageDeps

const ApprovalParams = Type.Object({
  ...InstanceParams.properties,
  approval_id: Uuid('The id of the approval.'),
})

const Answer = Type.Object(
  {
    decision: Type.Union([Type.Literal('approve'), Type.Literal('deny')], {
      description: '`approve`: the command runs once. `deny`: the agent gets a refusal, and goes on.',
    }),
    reason: Type.Optional(
      Type.String({ maxLength: 500, ...plainText, description: 'For the history. The agent does not see it.' }),
    ),
  },
  { additionalProperties: false, examples: [{ decision: 'deny', reason: 'The reports of 2019 are needed.' }] },
)

const config = { access: 'approve' } as const
const gatewayFailures = failures(400, 404, 409, 502, 504)

/** The routes of the approvals of an agent, which its gateway keeps. A key needs `approve`. */
export const approvalRoutes: FastifyPluginAsyncTypebox<ApprovalDeps> = async (app, deps) => {
  const { db, askGateway } = deps
  app.get(
    '/v1/instances/:instance_id/approvals',
    {
      config,
      schema: {
        operationId: 'listApprovals',
        summary: 'List approvals',
        description:
          'Those that wait, and up to 100 of the last 30 days, latest first. None wait while the instance does not run: ' +
          'the list is empty then.',
        tags: ['approvals'],
        params: InstanceParams,
        response: { 200: Type.Array(Approval), ...gatewayFailures },
      },
    },
    async ({ caller, params }) => {
      const row = await getInstance(db, caller.organizationId, params.instance_id)
      if (publicStatus(row) !== 'running') return []
      return (await askGateway(caller.organizationId, row.id, listApprovals)).map(toApproval)
    },
  )

  app.get(
    '/v1/instances/:instance_id/approvals/:approval_id',
    {
      config,
      schema: {
        operationId: 'getApproval',
        summary: 'Read an approval',
        description: 'The instance must be `running`.',
        tags: ['approvals'],
        params: ApprovalParams,
        response: { 200: Approval, ...gatewayFailures },
      },
    },
    async ({ caller, params: { instance_id: instanceId, approval_id: approvalId } }) =>
      toApproval(await findApproval(askGateway, { organizationId: caller.organizationId, instanceId, approvalId })),
  )

  app.post(
    '/v1/instances/:instance_id/approvals/:approval_id',
    {
      config: { ...config, event: 'approval.resolve' },
      schema: {
        operationId: 'answerApproval',
        summary: 'Approve or deny a command',
        description:
          'The first answer counts, from wherever it comes. A later one changes nothing: `status` is that of the first.',
        tags: ['approvals'],
        params: ApprovalParams,
        body: Answer,
        response: { 200: Approval, ...gatewayFailures },
      },
    },
    async ({ caller, params: { instance_id: instanceId, approval_id: approvalId }, body: { decision, reason } }) => {
      const id = { organizationId: caller.organizationId, instanceId, approvalId }
      const answer = { decision: decision === 'approve' ? 'allow-once' : 'deny', reason } as const
      return toApproval(await answerApproval(deps, id, answer))
    },
  )

  await app.register(approvalPages, deps)
}
