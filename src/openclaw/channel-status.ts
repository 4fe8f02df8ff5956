import { type GatewayClient, GatewayRefusal } from './gateway.ts'
import { isObject } from './json.ts'

const statusTimeoutMs = 20_000
/** How long the gateway may ask the platform. */
const probeTimeoutMs = 8000
const maxTextCharacters = 2000
const maxIssues = 100

/** What a gateway says of one of its channels. */
export interface ChannelStatus {
  configured: boolean
  running: boolean
  /** Up, as the gateway and the platform both say. */
  connected: boolean
  /** Whether waiting helps no more: the platform has refused the credentials, or some are missing. */
  refused: boolean
  /** Why it is not connected, in the gateway's words. */
  error: string | null
  /** What the bot is called there. */
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

/** The agent may answer in its gateway's place, with as much as it likes. */
const text = (value: unknown) => (typeof value === 'string' && value !== '' ? value.slice(0, maxTextCharacters) : null)
const object = (value: unknown) => (isObject(value) ? value : {})

/** Of a web API: too many requests and timeouts are no verdict on the credentials. */
const isRefusal = (status: unknown) =>
  typeof status === 'number' && status >= 400 && status < 500 && status !== 408 && status !== 429

/**
 * Asks a gateway about a channel, and lets it ask the platform. One whose plugin it does not have is not configured.
 * Throws as GatewayClient does.
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
  const error = text(account.lastError) ?? text(probe.error)
  const issues = Array.isArray(answer.statusIssues) ? answer.statusIssues.filter(isObject) : []
  return {
    configured: account.configured === true,
    running: account.running === true,
    connected: isUp && probe.ok !== false,
    refused:
      isRefusal(probe.status) ||
      (account.terminalDisconnect === true && probe.ok !== true) ||
      account.configured !== true,
    error: error ?? (account.running === true ? null : text(account.stateReason)),
    account: text(object(probe.bot).username) ?? text(object(probe.bot).name) ?? text(account.publicKey),
    issues: issues
      .filter((issue) => issue.channel === channel)
      .flatMap(({ message, fix }) => {
        const [said, proposed] = [text(message), text(fix)]
        return said === null ? [] : [{ message: said, ...(proposed !== null && { fix: proposed }) }]
      })
      .slice(0, maxIssues),
  }
}
