import mime from 'mime'
import { AppError } from '#errors/app-error.ts'
import { invalidField } from './invalid-field.ts'

/** An image or a file in the form that OpenClaw accepts. */
export type MediaSource =
  | { type: 'url'; url: string }
  | { type: 'base64'; media_type: string; data: string; filename?: string }

// OpenClaw's limits for the media of a message. It refuses or cuts larger media without an explanation.
const maxImageBytes = 10 * 1024 * 1024
const maxFileBytes = 5 * 1024 * 1024
const maxFileCharacters = 60_000
const imageTypes = ['image/jpeg', 'image/png', 'image/gif', 'image/webp', 'image/heic', 'image/heif']
const fileTypes = ['text/plain', 'text/markdown', 'text/html', 'text/csv', 'application/json', 'application/pdf']
/** Images and files together that one message may name by URL. */
export const maxUrlParts = 8

const tooLarge = (param: string, why: string) => new AppError('too_large', `${param}: ${why}`, { param })

const base64 = /^[A-Za-z0-9+/]+={0,2}$/
const dataUrl = /^data:([^;,]{1,100})?(?:;[^;,]{1,100}){0,4};base64,/i

function readData(text: string, param: string): { mediaType: string | undefined; data: string; bytes: number } {
  const prefix = dataUrl.exec(text.slice(0, 600))
  if (!prefix && text.startsWith('data:')) throw invalidField(param, 'a data: URL must be base64.', 'invalid_media')
  const data = prefix ? text.slice(prefix[0].length) : text
  if (!base64.test(data) || data.length % 4 !== 0) throw invalidField(param, 'is not valid base64.', 'invalid_media')
  const padding = data.endsWith('==') ? 2 : data.endsWith('=') ? 1 : 0
  return { mediaType: prefix?.[1]?.toLowerCase(), data, bytes: (data.length / 4) * 3 - padding }
}

function readUrl(text: string, param: string): MediaSource {
  const url = URL.parse(text)
  if (url?.protocol === 'http:' || url?.protocol === 'https:') return { type: 'url', url: text }
  throw invalidField(param, 'must be a data: URL or an http(s) URL.', 'invalid_media')
}

/** The first bytes of each type of image, in hex. */
const signatures = [
  /^ffd8ff/,
  /^89504e470d0a1a0a/,
  /^474946383[79]61/,
  /^52494646.{8}57454250/,
  /^.{8}66747970(68656|6d696631|6d736631)/,
]

/** Reads the `image_url` of an image part. Throws AppError invalid or too_large, with `param` as the field. */
export function readImage(imageUrl: string, param: string): MediaSource {
  if (!imageUrl.startsWith('data:')) return readUrl(imageUrl, param)
  const { mediaType = '', data, bytes } = readData(imageUrl, param)
  if (!imageTypes.includes(mediaType))
    throw invalidField(param, `the media type must be one of ${imageTypes.join(', ')}.`, 'invalid_media')
  if (bytes > maxImageBytes) throw tooLarge(param, 'an image must not be larger than 10 MB.')
  const firstBytes = Buffer.from(data.slice(0, 64), 'base64').toString('hex')
  if (!signatures.some((signature) => signature.test(firstBytes)))
    throw invalidField(param, 'the data is not an image.', 'invalid_media')
  return { type: 'base64', media_type: mediaType, data }
}

/** Reads the `file_data` of a file part, a data: URL or bare base64. Throws AppError invalid or too_large. */
export function readFileData(fileData: string, filename: string | undefined, param: string): MediaSource {
  const { mediaType, data, bytes } = readData(fileData, param)
  const typeOfName = filename === undefined ? null : mime.getType(filename)
  const media_type =
    mediaType === undefined || mediaType === 'application/octet-stream' ? (typeOfName ?? '') : mediaType
  if (!fileTypes.includes(media_type))
    throw invalidField(param, `the media type must be one of ${fileTypes.join(', ')}.`, 'invalid_media')
  if (bytes > maxFileBytes) throw tooLarge(param, 'a file must not be larger than 5 MB.')
  if (media_type !== 'application/pdf' && Buffer.from(data, 'base64').toString('utf8').length > maxFileCharacters) {
    throw tooLarge(param, 'a text file must not be longer than 60,000 characters.')
  }
  return { type: 'base64', media_type, data, ...(filename !== undefined && { filename }) }
}

/** Reads the `file_url` of a file part. Throws AppError invalid. */
export const readFileUrl = readUrl
