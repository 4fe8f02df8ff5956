import { hash, timingSafeEqual } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import type { Duplex } from 'node:stream'
import { egressTexts } from '#errors/egress-texts.ts'
import type { Logger } from '#platform/log.ts'
import { createRefusals } from '#platform/throttle.ts'
import type { EgressGrant, FindEgressGrant } from './grants.ts'
import { clientLeft, EgressRefused } from './refused.ts'

/** The id of an instance, and its proof. */
interface Credentials {
  instanceId: string
  token: string
}

/** Whether a token is that of an instance, in constant time for wrong ones. */
const isSameToken = (shown: string, own: string): boolean =>
  timingSafeEqual(hash('sha256', shown, 'buffer'), hash('sha256', own, 'buffer'))

/** Parses `Basic` credentials; null without usable ones. */
function readCredentials(header: string | undefined): Credentials | null {
  const [, encoded = ''] = /^basic +([A-Za-z0-9+/=]{1,512})$/i.exec(header ?? '') ?? []
  const [, instanceId = '', token = ''] = /^([^:]+):(.+)$/.exec(Buffer.from(encoded, 'base64').toString()) ?? []
  return token === '' ? null : { instanceId, token }
}

/**
 * Identifies the agent of a request, and returns its grant. Throws EgressRefused, and `clientLeft` when too many wrong
 * credentials wait for their refusal.
 */
export type Authenticate = (request: IncomingMessage) => Promise<EgressGrant>

/** `instanceOf` returns the instance of a connection if it is known: then its credentials are ignored. */
export function createAuthenticate(
  findGrant: FindEgressGrant,
  instanceOf: (connection: Duplex) => string | undefined,
  log: Logger,
): Authenticate {
  const refusals = createRefusals()

  async function find(instanceId: string): Promise<EgressGrant | null> {
    return findGrant(instanceId).catch((error: unknown) => {
      log.warn({ err: error }, 'failed to read the egress policy of an agent')
      throw new EgressRefused(503, 'proxy_internal_error', egressTexts.unavailable)
    })
  }

  return async (request) => {
    const known = instanceOf(request.socket)
    const shown = known === undefined ? readCredentials(request.headers['proxy-authorization']) : null
    const grant = await find(known ?? shown?.instanceId ?? '')
    if (grant && (known !== undefined || isSameToken(shown?.token ?? '', grant.token))) return grant
    if (known !== undefined) throw new EgressRefused(403, 'http_request_denied', egressTexts.stopped)
    // Many clients send their credentials only after a first refusal.
    if (shown !== null && !(await refusals.wait())) throw clientLeft
    throw new EgressRefused(407, 'http_request_denied', egressTexts.credentials)
  }
}
