import { type Static, Type } from '@sinclair/typebox'
import { approvalMinutes, approvalStatuses, type Approval as GatewayApproval } from '#openclaw/gateway/approvals.ts'
import { toMicroseconds } from '#platform/timestamps.ts'
import { DateTime, Nullable, OneOf, Uuid } from '#platform/typebox.ts'

export const Approval = Type.Object(
  {
    id: Uuid('The id of the approval, by OpenClaw.'),
    status: OneOf(
      approvalStatuses,
      '`pending`: it waits for an answer. `expired`: it had none in time. `cancelled`: its turn or its gateway ended.',
    ),
    command: Type.String({
      description: 'The command that the agent would run. OpenClaw hides the secrets that it recognizes.',
    }),
    created_at: DateTime('When the agent asked.'),
    expires_at: DateTime('When Chowder denies it, unless it has an answer.'),
    resolved_at: Nullable(DateTime('When it ended; null while it waits.')),
    reason: Nullable(
      Type.String({
        description: "OpenClaw's reason of the end, such as `user` or `gateway-restart`; null while it waits.",
      }),
    ),
  },
  {
    additionalProperties: false,
    description: 'A command of an agent with `approvals: "ask"`, which waits for a person.',
    examples: [
      {
        id: '9b1c6f0e-2f5e-4d0b-8a5e-0d6f4f7f3b21',
        status: 'pending',
        command: 'rm -r reports/2019',
        created_at: '2026-12-04T09:00:00.000000Z',
        expires_at: '2026-12-04T09:25:00.000000Z',
        resolved_at: null,
        reason: null,
      },
    ],
  },
)

export type ShownApproval = Static<typeof Approval>

export const toApproval = ({ id, status, command, createdAt, resolvedAt, reason }: GatewayApproval): ShownApproval => ({
  id,
  status,
  command,
  created_at: toMicroseconds(new Date(createdAt)),
  expires_at: toMicroseconds(new Date(createdAt + approvalMinutes * 60_000)),
  resolved_at: resolvedAt === null ? null : toMicroseconds(new Date(resolvedAt)),
  reason,
})
