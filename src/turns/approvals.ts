import { setTimeout as sleep } from 'node:timers/promises'
import type { FastifyBaseLogger } from 'fastify'
import type { Db } from '#database/client.ts'
import { runAs } from '#history/actor.ts'
import { recordEventOnce } from '#history/record.ts'
import {
  type Approval,
  approvalMinutes,
  getApproval,
  pendingApprovals,
  resolveApproval,
} from '#openclaw/gateway/approvals.ts'
import type { GatewayClient } from '#openclaw/gateway/gateway.ts'
import { errorTexts } from './error-texts.ts'

const deadlineMs = approvalMinutes * 60_000
/** A process that has sent an answer of a person records it with the actor. Other answers come from elsewhere. */
const othersRecordMs = 2000

/** A command of the turn waits for an approval, or no longer does. */
export interface ApprovalEvent {
  kind: 'approval'
  approval: Approval
}

export interface ApprovalParts {
  db: Db
  organizationId: string
  instanceId: string
  log: FastifyBaseLogger
  /** Called with each change, in order. */
  onChange(event: ApprovalEvent): void
}

/**
 * The approvals of one turn, as the registry of its gateway has them: their requests and ends go into the history and
 * the stream of the turn, and each that has no answer in time is denied. The process that runs the turn does this; if
 * it ends, the next one goes on, and without one the gateway denies after 30 minutes.
 */
export class TurnApprovals {
  readonly #parts: ApprovalParts
  readonly #timers = new Map<string, NodeJS.Timeout>()
  #last: Promise<void> = Promise.resolve()

  constructor(parts: ApprovalParts) {
    this.#parts = parts
  }

  /** Reads an approval again. */
  read(gateway: GatewayClient, id: string): void {
    this.#next(() => this.#read(gateway, id))
  }

  /** Reads those of a run after the connection was lost, or by the process that goes on; `known` waited before. */
  catchUp(gateway: GatewayClient, runId: string, known: readonly string[]): void {
    this.#next(async () => {
      const ids = new Set([...known, ...this.#timers.keys(), ...(await pendingApprovals(gateway, runId))])
      for (const id of ids) await this.#read(gateway, id)
    })
  }

  /** At the end of the turn: nothing waits any more. */
  async end(): Promise<void> {
    await this.#last
    const left = [...this.#timers.keys()]
    this.leave()
    for (const id of left) await this.#record('approval.resolved', id, errorTexts.approvalOfEndedTurn)
  }

  /** Another process goes on. */
  leave(): void {
    for (const timer of this.#timers.values()) clearTimeout(timer)
    this.#timers.clear()
  }

  #next(act: () => Promise<void>): void {
    const { log, instanceId } = this.#parts
    this.#last = this.#last
      .then(act)
      .catch((err: unknown) => log.warn({ err, instanceId }, 'an approval could not be followed'))
  }

  async #read(gateway: GatewayClient, id: string): Promise<void> {
    const approval = await getApproval(gateway, id)
    if (!approval) return
    if (approval.status !== 'pending') return this.#ended(approval)
    if (this.#timers.has(id)) return
    const deny = () => this.#next(() => this.#denyLate(gateway, id))
    this.#timers.set(id, setTimeout(deny, deadlineMs).unref())
    this.#parts.onChange({ kind: 'approval', approval })
    await this.#record('approval.requested', id)
  }

  async #denyLate(gateway: GatewayClient, id: string): Promise<void> {
    const { isFirst, approval } = await resolveApproval(gateway, id, 'deny')
    if (isFirst) await this.#record('approval.resolved', id, errorTexts.approvalTooLate(approvalMinutes))
    this.#ended(approval)
  }

  #ended(approval: Approval): void {
    const { id, status, reason } = approval
    clearTimeout(this.#timers.get(id))
    this.#timers.delete(id)
    this.#parts.onChange({ kind: 'approval', approval })
    const { log, instanceId } = this.#parts
    const recorded = reason === 'user' ? sleep(othersRecordMs, undefined, { ref: false }) : Promise.resolve()
    recorded
      .then(() => this.#record('approval.resolved', id, `${status}${reason === null ? '' : `: ${reason}`}`))
      .catch((err: unknown) => log.warn({ err, instanceId }, 'the end of an approval could not be recorded'))
  }

  #record(type: 'approval.requested' | 'approval.resolved', subject: string, reason?: string): Promise<void> {
    const { db, organizationId, instanceId } = this.#parts
    return runAs({ actor: { type: 'worker' } }, () =>
      recordEventOnce(db, { organizationId, instanceId, type, subject, reason }),
    )
  }
}
