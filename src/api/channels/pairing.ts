import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { gatewayTimeout, gatewayUnreachable } from '#instances/gateway/errors.ts'
import { getInstance } from '#instances/row.ts'
import type { GatewayClient } from '#openclaw/gateway/gateway.ts'
import { openclawCommand } from '#openclaw/inside/launch.ts'
import { isObject } from '#openclaw/json.ts'
import { parseTimestamp, toMicroseconds } from '#platform/timestamps.ts'
import type { SandboxAccess } from '#sandbox/driver.ts'
import type { ChannelDeps } from './deps.ts'

/** OpenClaw's command line takes seconds to start. */
const listTimeoutMs = 45_000
const listMaxBytes = 256 * 1024
/** More than OpenClaw keeps: it keeps three for each account of a channel. */
const maxRequests = 100
const maxSenderFields = 50
const maxSenderCharacters = 500

/** The agent may answer in place of its gateway, with any value: `String` cannot convert some. */
const text = (value: unknown) => (typeof value === 'string' ? value : '')

/** Formats a time as in all answers; empty if the value is not a time. */
function time(value: unknown): string {
  const date = parseTimestamp(text(value))
  return date ? toMicroseconds(date) : ''
}

const snakeCase = (name: string) =>
  name.replace(/(?<=[a-z0-9])[A-Z]+/g, (capitals) => `_${capitals.toLowerCase()}`).slice(0, maxSenderCharacters)

/** A person who wrote to the agent and waits for approval. */
export interface PairingRequest {
  requestId: string
  accountId: string
  senderId: string
  /** The platform's data about the person, its names in snake_case. */
  sender: Record<string, unknown>
  createdAt: string
  expiresAt: string
}

function senderOf(metadata: unknown): PairingRequest['sender'] {
  const entries = isObject(metadata) ? Object.entries(metadata).slice(0, maxSenderFields) : []
  const scalars = entries.filter(([, value]) => ['string', 'number', 'boolean'].includes(typeof value))
  return Object.fromEntries(
    scalars.map(([name, value]) => [
      snakeCase(name),
      typeof value === 'string' ? value.slice(0, maxSenderCharacters) : value,
    ]),
  )
}

/** The pending requests of a channel. The gateway does not know their codes. */
export async function listPairings(gateway: GatewayClient, channel: string): Promise<PairingRequest[]> {
  const answer = await gateway.call('channels.pairing.list', { channel })
  const requests = isObject(answer) && Array.isArray(answer.requests) ? answer.requests.filter(isObject) : []
  return requests.slice(0, maxRequests).map(({ requestId, accountId, senderId, metadata, createdAt, expiresAt }) => ({
    requestId: text(requestId),
    accountId: text(accountId),
    senderId: text(senderId),
    sender: senderOf(metadata),
    createdAt: time(createdAt),
    expiresAt: time(expiresAt),
  }))
}

interface PairingCode {
  code: string
  senderId: string
  accountId: string | undefined
}

/** Runs OpenClaw's command line in the sandbox, the only interface that returns the codes. */
async function listCodes(
  sandboxes: SandboxAccess,
  instanceId: string,
  channel: string,
  signal: AbortSignal,
): Promise<PairingCode[]> {
  const { paths } = await sandboxes.observe(instanceId, signal)
  if (!paths) throw gatewayUnreachable()
  const { exitCode, stdout } = await sandboxes.exec(
    instanceId,
    openclawCommand(paths, 'pairing', 'list', channel, '--json'),
    { timeoutMs: listTimeoutMs, maxBytes: listMaxBytes },
    signal,
  )
  if (exitCode === null) throw gatewayTimeout()
  const requests = parseRequests(stdout)
  if (exitCode !== 0 || !requests) throw gatewayUnreachable()
  return requests.map(({ code, id: senderId, meta }) => ({
    code: text(code),
    senderId: text(senderId),
    accountId: isObject(meta) && typeof meta.accountId === 'string' ? meta.accountId : undefined,
  }))
}

function parseRequests(stdout: string): Record<string, unknown>[] | null {
  try {
    const answer: unknown = JSON.parse(stdout)
    return isObject(answer) && Array.isArray(answer.requests) ? answer.requests.filter(isObject) : null
  } catch {
    return null
  }
}

/** People type codes in any case, with or without dashes. */
const normalized = (code: string) => code.replaceAll('-', '').toUpperCase()

/**
 * Approves the pending request that has the code, so that its sender may talk to the agent. Returns the sender's id.
 * Throws invalid when no pending request has the code.
 */
export const approvePairing = (
  { db, askGateway, regions }: Pick<ChannelDeps, 'db' | 'askGateway' | 'regions'>,
  organizationId: string,
  instanceId: string,
  { channel, code }: { channel: string; code: string },
): Promise<string> =>
  askGateway(organizationId, instanceId, async (gateway, signal) => {
    const unknownCode = new AppError('unknown_pairing_code', texts.unknownPairingCode)
    if ((await listPairings(gateway, channel)).length === 0) throw unknownCode
    const { sandboxes } = regions.of(await getInstance(db, organizationId, instanceId))
    const codes = await listCodes(sandboxes, instanceId, channel, signal)
    const match = codes.find((pending) => normalized(pending.code) === normalized(code))
    if (!match) throw unknownCode
    const requests = await listPairings(gateway, channel)
    const request = requests.find(
      ({ senderId, accountId }) => senderId === match.senderId && (match.accountId ?? accountId) === accountId,
    )
    if (!request) throw unknownCode
    const { requestId, accountId, senderId } = request
    await gateway.call('channels.pairing.approve', { channel, accountId, requestId })
    return senderId
  })
