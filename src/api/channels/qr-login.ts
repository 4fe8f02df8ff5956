import { PNG } from 'pngjs'
import decodeQr from 'qr/decode.js'
import { readChannelStatus } from '#openclaw/channel-status.ts'
import type { GatewayClient } from '#openclaw/gateway.ts'
import { isObject } from '#openclaw/json.ts'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'
import { channelEntry } from './catalogue.ts'

/** How long the platform may take to hand out a QR code. */
const startTimeoutMs = 30_000
const answerMarginMs = 10_000
const pngDataUrl = /^data:image\/png;base64,([A-Za-z0-9+/=]+)$/
const maxMessageCharacters = 2000
const maxImageBytes = 256 * 1024
/** The largest QR code has 177 modules; one that is larger than this is not unpacked, it may be gigabytes. */
const maxSidePixels = 1024
const headerAt = 12
const widthAt = 16
const heightAt = 20
const interlaceAt = 28

interface QrCode {
  /** What the code says; null when it cannot be read here. */
  data: string | null
  /** PNG, base64. */
  image: string
}

export type Login =
  | { status: 'connected'; qr: null; message: string | null }
  | { status: 'awaiting_scan'; qr: QrCode; message: string | null }

function imageIn(dataUrl: unknown): string | null {
  const image = typeof dataUrl === 'string' ? pngDataUrl.exec(dataUrl)?.[1] : undefined
  return image === undefined || image.length > maxImageBytes ? null : image
}

function readQr(dataUrl: unknown): QrCode | null {
  const image = imageIn(dataUrl)
  if (image === null) return null
  try {
    const png = Buffer.from(image, 'base64')
    const isSmall = Math.max(png.readUInt32BE(widthAt), png.readUInt32BE(heightAt)) <= maxSidePixels
    // What is interlaced is unpacked whole, whatever its size; a second header would hold in place of the first.
    if (!isSmall || png[interlaceAt] !== 0 || png.lastIndexOf('IHDR') !== headerAt) return { data: null, image }
    const { width, height, data } = PNG.sync.read(png)
    return { data: decodeQr({ width, height, data }), image }
  } catch {
    return { data: null, image }
  }
}

const messageOf = (answer: Record<string, unknown>) =>
  typeof answer.message === 'string' ? answer.message.slice(0, maxMessageCharacters) : null

/**
 * Begins to link a channel by QR code, or answers the code of the attempt under way, as fresh as it is. Throws
 * gateway_unreachable with the gateway's words when the platform hands out none.
 */
export async function startLogin(gateway: GatewayClient, channel: string): Promise<Login> {
  const answer = await gateway.call(
    'web.login.start',
    { channel, timeoutMs: startTimeoutMs },
    { timeoutMs: startTimeoutMs + answerMarginMs },
  )
  const given = isObject(answer) ? answer : {}
  const message = messageOf(given)
  const qr = readQr(given.qrDataUrl)
  if (qr) return { status: 'awaiting_scan', qr, message }
  if (given.connected === true || (await readChannelStatus(gateway, channel)).connected) {
    return { status: 'connected', qr: null, message }
  }
  const { title } = channelEntry(channel)
  throw new AppError('gateway_unreachable', texts.channelDown(title, message ?? 'there is no QR code'))
}

/** Where a login is, in the gateway's words. */
export interface ScanState {
  state: 'connected' | 'awaiting_scan' | 'ended'
  message: string | null
}

/**
 * Waits for the scan; the gateway starts the channel of itself only while somebody does.
 */
export async function waitForScan(gateway: GatewayClient, channel: string, waitMs: number): Promise<ScanState> {
  const answer = await gateway.call(
    'web.login.wait',
    { channel, timeoutMs: waitMs },
    { timeoutMs: waitMs + answerMarginMs },
  )
  const given = isObject(answer) ? answer : {}
  const message = messageOf(given)
  if (given.connected === true) return { state: 'connected', message }
  const isOpen = message?.startsWith('Still waiting') || imageIn(given.qrDataUrl) !== null
  return { state: isOpen ? 'awaiting_scan' : 'ended', message }
}
