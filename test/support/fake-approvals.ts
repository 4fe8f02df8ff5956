import { randomUUID } from 'node:crypto'
import { type FakeGateway, Refusal } from './fake-gateway.ts'

type Json = Record<string, unknown>

/** The approvals of a fake gateway, by id. */
export interface FakeApprovals extends Map<string, Json> {
  /** Adds one that waits, and returns its id. */
  ask(command: string, presentation?: Json): string
}

/** Adds the methods of approvals to a fake gateway, in shapes recorded from OpenClaw 2026.9.6. */
export function addApprovals(gateway: FakeGateway): FakeApprovals {
  const approvals = Object.assign(new Map<string, Json>(), {
    ask(command: string, presentation: Json = {}) {
      const id = randomUUID()
      const createdAtMs = Date.now()
      const shown = {
        kind: 'exec',
        commandText: command,
        allowedDecisions: ['allow-once', 'allow-always', 'deny'],
        ...presentation,
      }
      approvals.set(id, { id, status: 'pending', createdAtMs, presentation: shown })
      return id
    },
  })
  const find = (id: unknown) => {
    const approval = approvals.get(String(id))
    if (!approval) throw new Refusal({ code: 'INVALID_REQUEST', message: 'unknown or expired approval id' })
    return approval
  }
  const those = (isPending: boolean) =>
    [...approvals.values()].filter(({ status }) => (status === 'pending') === isPending)
  Object.assign(gateway.methods, {
    'approval.get': ({ id }: Json) => ({ approval: find(id) }),
    'exec.approval.list': () => those(true).map(({ id }) => ({ id, request: { runId: null } })),
    'approval.history': () => ({ items: those(false) }),
    'approval.resolve': ({ id, decision }: Json) => {
      const approval = find(id)
      const applied = approval.status === 'pending'
      const status = decision === 'allow-once' ? 'allowed' : 'denied'
      if (applied) Object.assign(approval, { status, reason: 'user', resolvedAtMs: Date.now() })
      return { applied, approval }
    },
  })
  return approvals
}
