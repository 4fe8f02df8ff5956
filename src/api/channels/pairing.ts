import type { AskGateway } from '#instances/gateway/ask.ts'
import { gatewayTimeout, gatewayUnreachable } from '#instances/gateway/errors.ts'
import type { GatewayClient } from '#openclaw/gateway.ts'
import { isObject } from '#openclaw/json.ts'
import { openclawCommand } from '#openclaw/launch.ts'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'
import type { SandboxAccess } from '#sandbox/driver.ts'

/** OpenClaw's command line takes seconds to start. */
const listTimeoutMs = 45_000
const listMaxBytes = 256 * 1024
/** OpenClaw lets three people of an account wait. */
const maxRequests = 100
const maxSenderFields = 50
const maxSenderCharacters = 500

/** A string as it is, also where the agent answers in its gateway's place: another value may have no text form at all. */
const text = (value: unknown) => (typeof value === 'string' ? value : '')

/** Somebody who wrote to the agent and may not talk to it yet. */
export interface PairingRequest {
  requestId: string
  accountId: string
  senderId: string
  /** What the platform tells about the person. */
  sender: Record<string, unknown>
  createdAt: string
  expiresAt: string
}

function senderIn(metadata: unknown): PairingRequest['sender'] {
  const told = isObject(metadata) ? Object.entries(metadata).slice(0, maxSenderFields) : []
  const plainOnes = told.filter(([, value]) => ['string', 'number', 'boolean'].includes(typeof value))
  return Object.fromEntries(
    plainOnes.map(([name, value]) => [
      name.slice(0, maxSenderCharacters),
      typeof value === 'string' ? value.slice(0, maxSenderCharacters) : value,
    ]),
  )
}

/** Everybody who waits for approval. Their codes are not known to the gateway. */
export async function listPairings(gateway: GatewayClient, channel: string): Promise<PairingRequest[]> {
  const answer = await gateway.call('channels.pairing.list', { channel })
  const requests = isObject(answer) && Array.isArray(answer.requests) ? answer.requests.filter(isObject) : []
  return requests.slice(0, maxRequests).map(({ requestId, accountId, senderId, metadata, createdAt, expiresAt }) => ({
    requestId: text(requestId),
    accountId: text(accountId),
    senderId: text(senderId),
    sender: senderIn(metadata),
    createdAt: text(createdAt),
    expiresAt: text(expiresAt),
  }))
}

interface PairingCode {
  code: string
  senderId: string
  accountId: string | undefined
}

/** Only OpenClaw's command line tells the codes: asked in the sandbox, where it reads the gateway's database. */
async function listCodes(sandboxes: SandboxAccess, id: string, channel: string, signal: AbortSignal) {
  const { paths } = await sandboxes.observe(id, signal)
  if (!paths) throw gatewayUnreachable()
  const { exitCode, stdout } = await sandboxes.exec(
    id,
    openclawCommand(paths, 'pairing', 'list', channel, '--json'),
    { timeoutMs: listTimeoutMs, maxBytes: listMaxBytes },
    signal,
  )
  if (exitCode === null) throw gatewayTimeout()
  const listed = parse(stdout)
  if (exitCode !== 0 || !listed) throw gatewayUnreachable()
  return listed.map(
    ({ code, id: senderId, meta }): PairingCode => ({
      code: text(code),
      senderId: text(senderId),
      accountId: isObject(meta) && typeof meta.accountId === 'string' ? meta.accountId : undefined,
    }),
  )
}

function parse(stdout: string): Record<string, unknown>[] | null {
  try {
    const answer: unknown = JSON.parse(stdout)
    return isObject(answer) && Array.isArray(answer.requests) ? answer.requests.filter(isObject) : null
  } catch {
    return null
  }
}

/** As people read codes out: in any case, with dashes or without. */
const plain = (code: string) => code.replaceAll('-', '').toUpperCase()

/**
 * Lets the person with the code talk to the agent, and answers who that is. Throws invalid when no pending request has
 * the code.
 */
export const approvePairing = (
  { askGateway, sandboxes }: { askGateway: AskGateway; sandboxes: SandboxAccess },
  organizationId: string,
  id: string,
  { channel, code }: { channel: string; code: string },
): Promise<string> =>
  askGateway(organizationId, id, async (gateway, signal) => {
    const unknown = new AppError('invalid', texts.unknownPairingCode)
    if ((await listPairings(gateway, channel)).length === 0) throw unknown
    const codes = await listCodes(sandboxes, id, channel, signal)
    const found = codes.find((pending) => plain(pending.code) === plain(code))
    if (!found) throw unknown
    const requests = await listPairings(gateway, channel)
    const request = requests.find(
      ({ senderId, accountId }) => senderId === found.senderId && (found.accountId ?? accountId) === accountId,
    )
    if (!request) throw unknown
    const { requestId, accountId, senderId } = request
    await gateway.call('channels.pairing.approve', { channel, accountId, requestId })
    return senderId
  })
