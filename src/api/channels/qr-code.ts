const pngDataUrl = /^data:image\/png;base64,([A-Za-z0-9+/=]+)$/
const maxImageBytes = 256 * 1024
/** The largest QR code has 177 modules. A larger image may unpack to gigabytes. */
const maxSidePixels = 1024
const headerOffset = 12
const widthOffset = 16
const heightOffset = 20
const interlaceOffset = 28

export interface QrCode {
  /** The decoded text of the code; null if it cannot be decoded. */
  data: string | null
  /** PNG, in base64. */
  image: string
}

/** The base64 of a data URL of a PNG; null for anything else, and for an image that is too large. */
export function imageOf(dataUrl: unknown): string | null {
  const image = typeof dataUrl === 'string' ? pngDataUrl.exec(dataUrl)?.[1] : undefined
  return image === undefined || image.length > maxImageBytes ? null : image
}

/** The QR code in a gateway's data URL; null when it holds no image. The agent may have made the image. */
export async function readQrCode(dataUrl: unknown): Promise<QrCode | null> {
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
