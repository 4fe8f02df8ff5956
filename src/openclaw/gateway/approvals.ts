import { isObject } from '#openclaw/json.ts'
import type { GatewayClient } from './gateway.ts'
import { GatewayRefusal } from './gateway-errors.ts'

/** How long Chowder waits for an answer before it denies. The gateway's own deadline is 30 minutes. */
export const approvalMinutes = 25
/** OpenClaw's largest page. */
const historyLimit = 100
/** One agent seldom has more than one command that waits in each of its sessions. */
const maxPending = 50
/** OpenClaw shows at most 16,384 characters of a command, and a mark if there are more. */
const maxTextCharacters = 17_000

export const approvalStatuses = ['pending', 'allowed', 'denied', 'expired', 'cancelled'] as const
type ApprovalStatus = (typeof approvalStatuses)[number]
export type Decision = 'allow-once' | 'deny'

/** A command of an agent for which the gateway asks, as its registry has it. Times are those of the gateway, in ms. */
export interface Approval {
  id: string
  status: ApprovalStatus
  /** As OpenClaw shows it: invisible characters are escaped, and secrets that it recognizes are hidden. */
  command: string
  /** OpenClaw's reason of the end, such as `user`, `timeout`, `run-aborted` or `gateway-restart`; null while it waits. */
  reason: string | null
  createdAt: number
  resolvedAt: number | null
  /** The decisions that the gateway accepts. Any other one denies. */
  decisions: readonly string[]
}

const cut = (text: string) => text.slice(0, maxTextCharacters).toWellFormed()
const isTime = (value: unknown): value is number => typeof value === 'number' && Number.isSafeInteger(value)

/** Null for another kind of approval than that of a command, and for an answer that cannot be read. */
function readApproval(value: unknown): Approval | null {
  if (!isObject(value) || !isObject(value.presentation)) return null
  const { id, createdAtMs, resolvedAtMs, reason } = value
  const { kind, commandText, allowedDecisions } = value.presentation
  const status = approvalStatuses.find((one) => one === value.status)
  if (kind !== 'exec' || typeof commandText !== 'string' || typeof id !== 'string') return null
  if (status === undefined || !isTime(createdAtMs)) return null
  return {
    id: cut(id),
    status,
    command: cut(commandText),
    reason: typeof reason === 'string' ? cut(reason) : null,
    createdAt: createdAtMs,
    resolvedAt: isTime(resolvedAtMs) ? resolvedAtMs : null,
    decisions: Array.isArray(allowedDecisions) ? allowedDecisions.filter((one) => typeof one === 'string') : [],
  }
}

const listIn = (value: unknown): Record<string, unknown>[] => (Array.isArray(value) ? value.filter(isObject) : [])

/** Null for an unknown id. Throws the errors of `call`. */
export async function getApproval(gateway: GatewayClient, id: string): Promise<Approval | null> {
  try {
    const answer = await gateway.call('approval.get', { id })
    return readApproval(isObject(answer) ? answer.approval : null)
  } catch (error) {
    if (error instanceof GatewayRefusal) return null
    throw error
  }
}

/** The ids of the approvals that wait, oldest first; with `runId`, of those of a run. Throws the errors of `call`. */
export async function pendingApprovals(gateway: GatewayClient, runId?: string): Promise<string[]> {
  const all = listIn(await gateway.call('exec.approval.list'))
  const wanted = all.filter(({ request }) => runId === undefined || (isObject(request) && request.runId === runId))
  return wanted.flatMap(({ id }) => (typeof id === 'string' ? [id] : [])).slice(0, maxPending)
}

/** The approvals that wait, then the latest ended ones, which the gateway keeps for 30 days. Throws the errors of `call`. */
export async function listApprovals(gateway: GatewayClient): Promise<Approval[]> {
  const pending = await Promise.all((await pendingApprovals(gateway)).map((id) => getApproval(gateway, id)))
  const answer = await gateway.call('approval.history', { kind: 'exec', limit: historyLimit })
  const ended = listIn(isObject(answer) ? answer.items : null).map(readApproval)
  const seen = new Map<string, Approval>()
  for (const approval of [...pending, ...ended]) if (approval && !seen.has(approval.id)) seen.set(approval.id, approval)
  return [...seen.values()]
}

/**
 * Answers an approval that waits. The first answer counts: returns the recorded approval, and whether this answer was
 * the first. The caller checks `decisions` before: the gateway denies after an answer that it does not offer. Throws
 * the errors of `call`.
 */
export async function resolveApproval(
  gateway: GatewayClient,
  id: string,
  decision: Decision,
): Promise<{ isFirst: boolean; approval: Approval }> {
  const answer = await gateway.call('approval.resolve', { id, kind: 'exec', decision })
  const approval = readApproval(isObject(answer) ? answer.approval : null)
  if (!isObject(answer) || !approval) throw new GatewayRefusal('UNKNOWN', 'the gateway did not say how it recorded it')
  return { isFirst: answer.applied === true, approval }
}
