import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import type { AskGateway } from '#instances/gateway/ask.ts'
import { readChannelStatus } from '#openclaw/gateway/channel-status.ts'
import type { GatewayClient } from '#openclaw/gateway/gateway.ts'
import { isObject } from '#openclaw/json.ts'
import type { Logger } from '#platform/log.ts'
import { getChannelDefinition } from './catalogue.ts'
import { imageOf, type QrCode, readQrCode } from './qr-code.ts'

/** How long the platform may take to issue a QR code. */
const startTimeoutMs = 30_000
/** Margin of Chowder's wait for the gateway over the gateway's wait for the platform. */
const answerMarginMs = 10_000
/** A QR code is valid for about three minutes. */
const maxScanWaits = 18
const scanWaitMs = 10_000
const maxMessageCharacters = 2000

export type QrLogin =
  | { status: 'connected'; qr: null; message: string | null }
  | { status: 'awaiting_scan'; qr: QrCode; message: string | null }

export interface ScanState {
  state: 'connected' | 'awaiting_scan' | 'ended'
  /** The gateway's message. */
  message: string | null
}

/**
 * Starts a login, or returns the current QR code of the pending login. Throws gateway_unreachable, with the gateway's
 * message, when the platform issues no code. Waits in the background for the scan until the login has ended.
 */
export type StartQrLogin = (organizationId: string, instanceId: string, channel: string) => Promise<QrLogin>

interface QrLoginDeps {
  askGateway: AskGateway
  log: Pick<Logger, 'warn'>
  /** Stops waiting for scans. */
  signal: AbortSignal
}

export function createQrLogins({ askGateway, log, signal }: QrLoginDeps): StartQrLogin {
  const followed = new Set<string>()

  /** The gateway starts a channel after its scan only while a client waits for the scan. */
  async function follow(organizationId: string, instanceId: string, channel: string): Promise<void> {
    const key = `${instanceId}/${channel}`
    if (followed.has(key)) return
    followed.add(key)
    try {
      for (let waits = 0; waits < maxScanWaits && !signal.aborted; waits += 1) {
        const { state } = await askGateway(organizationId, instanceId, (gateway) =>
          waitForScan(gateway, channel, scanWaitMs),
        )
        if (state !== 'awaiting_scan') return
      }
    } catch (error) {
      log.warn({ err: error, instanceId, channel }, 'waiting for the scan of a QR code failed')
    } finally {
      followed.delete(key)
    }
  }

  return async (organizationId, instanceId, channel) => {
    const login = await askGateway(organizationId, instanceId, (gateway) => startLogin(gateway, channel))
    if (login.status === 'awaiting_scan') void follow(organizationId, instanceId, channel)
    return login
  }
}

async function startLogin(gateway: GatewayClient, channel: string): Promise<QrLogin> {
  const answer = await callLogin(gateway, 'web.login.start', channel, startTimeoutMs)
  const { message } = answer
  const qr = await readQrCode(answer.qrDataUrl)
  if (qr) return { status: 'awaiting_scan', qr, message }
  if (answer.isConnected || (await readChannelStatus(gateway, channel)).connected) {
    return { status: 'connected', qr: null, message }
  }
  const { title } = getChannelDefinition(channel)
  throw new AppError('channel_unreachable', texts.channelUnreachable(title, message ?? 'there is no QR code'))
}

/** Waits up to `timeoutMs` for the scan of the QR code. */
export async function waitForScan(gateway: GatewayClient, channel: string, timeoutMs: number): Promise<ScanState> {
  const { isConnected, message, qrDataUrl } = await callLogin(gateway, 'web.login.wait', channel, timeoutMs)
  if (isConnected) return { state: 'connected', message }
  const isOpen = message?.startsWith('Still waiting') || imageOf(qrDataUrl) !== null
  return { state: isOpen ? 'awaiting_scan' : 'ended', message }
}

async function callLogin(gateway: GatewayClient, method: string, channel: string, timeoutMs: number) {
  const options = { timeoutMs: timeoutMs + answerMarginMs }
  const answer = await gateway.call(method, { channel, timeoutMs }, options)
  const { connected, message, qrDataUrl } = isObject(answer) ? answer : {}
  return {
    isConnected: connected === true,
    message: typeof message === 'string' ? message.slice(0, maxMessageCharacters) : null,
    qrDataUrl,
  }
}
