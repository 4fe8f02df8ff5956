import type { IncomingMessage } from 'node:http'
import type { Duplex } from 'node:stream'
import { egressTexts } from '#platform/egress-texts.ts'
import type { Logger } from '#platform/log.ts'
import { createRefusals } from '#relay/refusals.ts'
import { isSameToken, readCredentials } from './credentials.ts'
import type { EgressGrant, FindEgressGrant } from './grants.ts'
import { clientLeft, EgressRefused } from './refused.ts'

/**
 * Finds out who asks, and what that agent may reach. Throws EgressRefused, and `clientLeft` when too many wrong
 * credentials wait for their refusal.
 */
export type Authenticate = (request: IncomingMessage) => Promise<EgressGrant>

/** `instanceOf` tells the instance of a connection where that is known: then credentials that are shown do not count. */
export function createAuthenticate(
  findGrant: FindEgressGrant,
  instanceOf: (connection: Duplex) => string | undefined,
  log: Logger,
): Authenticate {
  const refusals = createRefusals()

  async function find(instanceId: string): Promise<EgressGrant | null> {
    return findGrant(instanceId).catch((error: unknown) => {
      log.warn({ err: error }, 'what an agent may reach could not be looked up')
      throw new EgressRefused(503, 'proxy_internal_error', egressTexts.unavailable)
    })
  }

  return async (request) => {
    const known = instanceOf(request.socket)
    const shown = known === undefined ? readCredentials(request.headers['proxy-authorization']) : null
    const grant = await find(known ?? shown?.instanceId ?? '')
    if (grant && (known !== undefined || isSameToken(shown?.token ?? '', grant.token))) return grant
    if (known !== undefined) throw new EgressRefused(403, 'http_request_denied', egressTexts.stopped)
    // Many clients show their credentials only after a first refusal.
    if (shown !== null && !(await refusals.wait())) throw clientLeft
    throw new EgressRefused(407, 'http_request_denied', egressTexts.credentials)
  }
}
