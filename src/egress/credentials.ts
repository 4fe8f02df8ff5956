import { hash, timingSafeEqual } from 'node:crypto'

/** Who asks: the id of an instance, and what proves it. */
export interface Credentials {
  instanceId: string
  token: string
}

/** Whether a token is the one that an instance has; takes the same time for each wrong one. */
export const isSameToken = (shown: string, own: string): boolean =>
  timingSafeEqual(hash('sha256', shown, 'buffer'), hash('sha256', own, 'buffer'))

/** Reads `Basic` credentials; null without usable ones. */
export function readCredentials(header: string | undefined): Credentials | null {
  const [, encoded = ''] = /^basic +([A-Za-z0-9+/=]{1,512})$/i.exec(header ?? '') ?? []
  const [, instanceId = '', token = ''] = /^([^:]+):(.+)$/.exec(Buffer.from(encoded, 'base64').toString()) ?? []
  return token === '' ? null : { instanceId, token }
}
