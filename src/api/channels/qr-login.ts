import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import type { AskGateway } from '#instances/gateway/ask.ts'
import { readChannelStatus } from '#openclaw/gateway/channel-status.ts'
import type { GatewayClient } from '#openclaw/gateway/gateway.ts'
import { isObject } from '#openclaw/json.ts'
import type { Logger } from '#platform/log.ts'
import { getChannelDefinition } from './catalogue.ts'
import { startChannel } from './wait-until-connected.ts'

const pngDataUrl = /^data:image\/png;base64,([A-Za-z0-9+/=]+)$/
const maxImageBytes = 256 * 1024
/** The largest QR code has 177 modules. A larger image may unpack to gigabytes. */
const maxSidePixels = 1024
const headerOffset = 12
const widthOffset = 16
const heightOffset = 20
const interlaceOffset = 28

interface QrCode {
  /** The decoded text of the code; null if it cannot be decoded. */
  data: string | null
  /** PNG, in base64. */
  image: string
}

/** The base64 of a data URL of a PNG; null for anything else, and for an image that is too large. */
function imageOf(dataUrl: unknown): string | null {
  const image = typeof dataUrl === 'string' ? pngDataUrl.exec(dataUrl)?.[1] : undefined
  return image === undefined || image.length > maxImageBytes ? null : image
}

/** The QR code in a gateway's data URL; null when it holds no image. The agent may have made the image. */
async function readQrCode(dataUrl: unknown): Promise<QrCode | null> {
  const image = imageOf(dataUrl)
  if (image === null) return null
  try {
    const png = Buffer.from(image, 'base64')
    const isSmall = Math.max(png.readUInt32BE(widthOffset), png.readUInt32BE(heightOffset)) <= maxSidePixels
    // The library unpacks an interlaced image whole, whatever its size, and lets a second header replace the first.
    const isSafe = isSmall && png[interlaceOffset] === 0 && png.lastIndexOf('IHDR') === headerOffset
    if (!isSafe) return { data: null, image }
    const [{ PNG }, { default: decodeQr }] = await Promise.all([import('pngjs'), import('qr/decode.js')])
    const { width, height, data } = PNG.sync.read(png)
    return { data: decodeQr({ width, height, data }), image }
  } catch {
    return { data: null, image }
  }
}

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
  const isConnected = connected === true
  // After unclean ends of the gateway OpenClaw does not start the channel itself.
  if (isConnected) await startChannel(gateway, channel)
  return {
    isConnected,
    message: typeof message === 'string' ? message.slice(0, maxMessageCharacters) : null,
    qrDataUrl,
  }
}
