import type { Db } from '#database/client.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { recordEventOnce } from '#history/record.ts'
import type { AskGateway } from '#instances/gateway/ask.ts'
import { type Approval, type Decision, getApproval, resolveApproval } from '#openclaw/gateway/approvals.ts'
import { isId } from '#platform/ids.ts'

export interface AnswerParts {
  db: Db
  askGateway: AskGateway
}

/** An approval of an instance. */
export interface ApprovalId {
  organizationId: string
  instanceId: string
  approvalId: string
}

/** Throws AppError not_found, and the errors of `askGateway`. */
export async function findApproval(askGateway: AskGateway, { organizationId, instanceId, approvalId }: ApprovalId) {
  const approval = isId(approvalId)
    ? await askGateway(organizationId, instanceId, (gateway) => getApproval(gateway, approvalId))
    : null
  if (!approval) throw new AppError('not_found', texts.approvalNotFound)
  return approval
}

/**
 * Answers an approval. The first answer counts, and is recorded: a later one changes nothing. Returns the approval as it
 * is now. A crash in between leaves the event to the process that runs the turn. Throws the errors of `findApproval`,
 * and AppError invalid_value for a decision that the gateway does not offer.
 */
export async function answerApproval(
  { db, askGateway }: AnswerParts,
  id: ApprovalId,
  { decision, reason }: { decision: Decision; reason?: string | undefined },
): Promise<Approval> {
  const found = await findApproval(askGateway, id)
  if (found.status !== 'pending') return found
  // The gateway denies after an answer that it does not offer.
  if (!found.decisions.includes(decision))
    throw new AppError('invalid_value', texts.decisionNotOffered, { param: 'decision' })
  const { organizationId, instanceId, approvalId } = id
  const { isFirst, approval } = await askGateway(organizationId, instanceId, (gateway) =>
    resolveApproval(gateway, approvalId, decision),
  )
  if (isFirst) {
    const type = 'approval.resolved'
    const said = `${approval.status}${reason === undefined ? '' : `: ${reason}`}`
    await recordEventOnce(db, { organizationId, instanceId, type, subject: approvalId, reason: said })
  }
  return approval
}
