import type { Db } from '#database/client.ts'
import { AppError } from '#errors/app-error.ts'
import type { FindGateway } from '#instances/find.ts'
import { getInstance } from '#instances/row.ts'
import { connectGateway, type GatewayClient } from '#openclaw/gateway/gateway.ts'
import type { Vault } from '#platform/secrets.ts'
import { isInvalidRequest, toCallerError } from './errors.ts'
import { createInstanceMask } from './secrets.ts'

const connectTimeoutMs = 10_000
/** Time limit of all calls of one request together. */
const askTimeoutMs = 60_000

/**
 * Connects a request to a running instance's gateway, runs `ask` and closes the connection. Only for calls that neither
 * configure nor restart the gateway. Throws not_found; conflict when the instance does not run; invalid, with the
 * gateway's message without secrets, when it refuses the request; gateway_unreachable and gateway_timeout.
 */
export type AskGateway = <T>(
  organizationId: string,
  id: string,
  ask: (gateway: GatewayClient, signal: AbortSignal) => Promise<T>,
) => Promise<T>

export const createAskGateway =
  (findGateway: FindGateway, { db, vault }: { db: Db; vault: Vault }): AskGateway =>
  async (organizationId, id, ask) => {
    const { endpoint, token } = await findGateway(organizationId, id)
    const signal = AbortSignal.timeout(askTimeoutMs)
    try {
      const gateway = await connectGateway(endpoint, token, { signal, timeoutMs: connectTimeoutMs })
      try {
        return await ask(gateway, signal)
      } finally {
        gateway.close()
      }
    } catch (cause) {
      if (isInvalidRequest(cause)) {
        const mask = await createInstanceMask(db, vault, await getInstance(db, organizationId, id))
        throw new AppError('openclaw_refused', `OpenClaw: ${mask(cause.message, true)}`, { cause })
      }
      throw toCallerError(cause, signal)
    }
  }
