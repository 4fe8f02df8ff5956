import { texts } from '#errors/texts.ts'
import { isObject } from '#openclaw/json.ts'
import type { GatewayClient } from './gateway.ts'
import { GatewayRefusal } from './gateway-errors.ts'

const statusTimeoutMs = 20_000
/** Time limit of the gateway's request to the platform. */
const probeTimeoutMs = 8000
const maxTextCharacters = 2000
const maxIssues = 100
/** OpenClaw's own text goes on with a command that its owner cannot run. */
const suppressed = 'gateway restart-loop breaker tripped'

/** The state of one channel, as reported by its gateway. */
export interface ChannelStatus {
  configured: boolean
  running: boolean
  /** Whether both the gateway and the platform report the connection as up. */
  connected: boolean
  /** Whether the channel needs new credentials: the platform has refused them, or some are missing. */
  refused: boolean
  /** The gateway's reason why it is not connected. */
  error: string | null
  /** The bot's name on the platform. */
  account: string | null
  issues: { message: string; fix?: string }[]
}

const absent: ChannelStatus = {
  configured: false,
  running: false,
  connected: false,
  refused: false,
  error: null,
  account: null,
  issues: [],
}

/** The agent may answer in place of its gateway, so the length of texts is limited. */
const text = (value: unknown) => (typeof value === 'string' && value !== '' ? value.slice(0, maxTextCharacters) : null)
const object = (value: unknown) => (isObject(value) ? value : {})

/** Whether an HTTP status means refused credentials; 408 and 429 do not. */
const isRefusal = (status: unknown) =>
  typeof status === 'number' && status >= 400 && status < 500 && status !== 408 && status !== 429

/**
 * Asks a gateway for a channel's state, which includes a request to the platform. A channel with a missing plugin is
 * reported as not configured. Throws the errors of GatewayClient.
 */
export async function readChannelStatus(gateway: GatewayClient, channel: string): Promise<ChannelStatus> {
  const params = { channel, probe: true, timeoutMs: probeTimeoutMs }
  const answer = object(
    await gateway.call('channels.status', params, { timeoutMs: statusTimeoutMs }).catch((error: unknown) => {
      if (error instanceof GatewayRefusal && error.message.startsWith('unknown channel')) return null
      throw error
    }),
  )
  const accounts = object(answer.channelAccounts)[channel]
  const account: unknown = Array.isArray(accounts) ? accounts[0] : undefined
  if (!isObject(account)) return absent
  const probe = object(account.probe)
  const isUp = account.running === true && (account.connected ?? account.lifecycle === 'ready') === true
  const isDisabled = account.stateReason === 'disabled'
  // The channel, not its account, says that OpenClaw did not start it after unclean ends.
  const summary = object(object(answer.channels)[channel])
  const found = text(account.lastError) ?? text(summary.lastError) ?? text(probe.error)
  const error = found?.startsWith(suppressed) ? texts.channelSuppressed : found
  const issues = Array.isArray(answer.statusIssues) ? answer.statusIssues.filter(isObject) : []
  return {
    configured: account.configured === true,
    running: account.running === true,
    connected: isUp && probe.ok !== false,
    refused:
      isRefusal(probe.status) ||
      (account.terminalDisconnect === true && probe.ok !== true) ||
      account.configured !== true,
    error: error ?? (account.running === true || isDisabled ? null : text(account.stateReason)),
    account: text(object(probe.bot).username) ?? text(object(probe.bot).name) ?? text(account.publicKey),
    issues: issues
      .filter((issue) => issue.channel === channel)
      .flatMap(({ message, fix }) => {
        const [shown, proposed] = [text(message), text(fix)]
        return shown === null ? [] : [{ message: shown, ...(proposed !== null && { fix: proposed }) }]
      })
      .slice(0, maxIssues),
  }
}
