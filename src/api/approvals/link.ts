import type { Event } from '#database/schema.ts'
import { approvalMinutes } from '#openclaw/gateway/approvals.ts'
import { isObject } from '#openclaw/json.ts'
import type { Vault } from '#platform/secrets.ts'
import type { ApprovalId } from './answer.ts'

/** The sealing context of links: no other sealed value is valid as one. */
const place = 'approval_links'

/**
 * The approval that a link answers until `expiresAt`, which is in ms since 1970 by the clock of the database. It is stored
 * in the link alone.
 */
export interface LinkGrant extends ApprovalId {
  expiresAt: number
}

/**
 * The address of a page at which whoever has it can answer one approval, that was asked for at `requestedAt`. It has no
 * more use once the approval has an answer, since the first one counts.
 */
function approvalUrl(vault: Vault, publicUrl: string, id: ApprovalId, requestedAt: Date): string {
  const grant: LinkGrant = { ...id, expiresAt: requestedAt.getTime() + approvalMinutes * 60_000 }
  return `${publicUrl}/v1/approve/${vault.seal(JSON.stringify(grant), place)}`
}

/** The fields that a webhook adds to an event: for the request of an approval its link, if the URL is known. */
export function approvalLink(vault: Vault, publicUrl: string, event: Event): { approve_url?: string } {
  const { type, organizationId, instanceId, subject, createdAt } = event
  if (type !== 'approval.requested' || instanceId === null || subject === null || publicUrl === '') return {}
  return { approve_url: approvalUrl(vault, publicUrl, { organizationId, instanceId, approvalId: subject }, createdAt) }
}

/** Null for a malformed link, and one of another installation. */
export function readLink(vault: Vault, token: string): LinkGrant | null {
  try {
    const grant: unknown = JSON.parse(vault.unseal(token, place))
    return isObject(grant) ? (grant as unknown as LinkGrant) : null
  } catch {
    return null
  }
}
