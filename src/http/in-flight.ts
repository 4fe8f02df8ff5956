import type { FastifyInstance, FastifyRequest } from 'fastify'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { inFlight } from '#platform/metrics.ts'
import { createAmounts } from '#platform/throttle.ts'

/** Maximum amounts in flight in this process. All but the last are for each organization. 0 means no limit. */
export interface InFlightLimits {
  /** Turns that run or wait in line. */
  turns: number
  /** Open WebSockets. */
  sockets: number
  /** Uploads and downloads of files. */
  transfers: number
  /** Lists read from the database. */
  lists: number
  /** Bytes of the bodies of requests without an answer yet. */
  bodyBytes: number
  /** The same for all organizations together. */
  processBodyBytes: number
}

/** Chowder's limits. */
export const inFlightLimits: InFlightLimits = {
  turns: 1000,
  sockets: 1000,
  transfers: 64,
  lists: 8, // fewer than the connections to the database, so that slow lists leave some to other organizations
  bodyBytes: 128 * 1024 ** 2,
  processBodyBytes: 512 * 1024 ** 2,
}

type Kind = 'turns' | 'sockets' | 'transfers' | 'lists'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** The kind for a request to the route, until it is answered or its connection is closed. */
    inFlight?: Kind
  }
}

export interface InFlight {
  /**
   * Counts an amount for an organization until the returned function is called; a second call does nothing. Throws
   * AppError `too_much_in_flight` at the limit.
   */
  take(kind: Kind, organizationId: string): () => void
}

/** Such requests may be sent again soon: others end all the time. */
const retryAfterSeconds = 1

function createInFlight(limits: InFlightLimits) {
  const counts = {
    turns: createAmounts(),
    sockets: createAmounts(),
    transfers: createAmounts(),
    lists: createAmounts(),
  }
  const bytes = createAmounts()
  let processBytes = 0

  const once = (release: () => void) => {
    let isReleased = false
    return () => {
      if (isReleased) return
      isReleased = true
      release()
    }
  }

  return {
    take(kind: Kind, organizationId: string): () => void {
      const count = counts[kind]
      if (limits[kind] > 0 && count.of(organizationId) >= limits[kind]) {
        throw new AppError('too_much_in_flight', texts.tooMuchInFlight[kind](limits[kind]), { retryAfterSeconds })
      }
      count.add(organizationId, 1)
      inFlight.inc({ kind })
      return once(() => {
        count.add(organizationId, -1)
        inFlight.dec({ kind })
      })
    },
    /** The same for the bytes of a body. Throws AppError `overloaded` at the limit of the process. */
    takeBytes(amount: number, organizationId: string): () => void {
      const { bodyBytes, processBodyBytes } = limits
      if (bodyBytes > 0 && bytes.of(organizationId) + amount > bodyBytes) {
        throw new AppError('too_much_in_flight', texts.tooMuchInFlight.bytes(bodyBytes), { retryAfterSeconds })
      }
      if (processBodyBytes > 0 && processBytes + amount > processBodyBytes) {
        throw new AppError('overloaded', texts.tooManyLargeBodies, { retryAfterSeconds })
      }
      bytes.add(organizationId, amount)
      processBytes += amount
      inFlight.inc({ kind: 'body_bytes' }, amount)
      return once(() => {
        bytes.add(organizationId, -amount)
        processBytes -= amount
        inFlight.dec({ kind: 'body_bytes' }, amount)
      })
    },
  }
}

/** The maximum bytes of a request's body: the announced ones, else the limit of its route. */
function bodyBytesOf({ headers, routeOptions }: FastifyRequest): number {
  if (routeOptions.config.streamsBody) return 0
  const { 'content-length': announced, 'transfer-encoding': encoding } = headers
  const limit = routeOptions.bodyLimit ?? 0
  if (announced !== undefined) return Math.min(Number(announced) || 0, limit)
  return encoding === undefined ? 0 : limit
}

/** Limits what the callers of all later routes have in flight. Add it after the hook that finds the caller. */
export function useInFlight(app: FastifyInstance, limits: InFlightLimits): InFlight {
  const bounds = createInFlight(limits)
  app.addHook('onRequest', async (request, reply) => {
    const { caller, routeOptions } = request
    if (!caller || reply.raw.closed) return
    const { inFlight: kind } = routeOptions.config
    const amount = bodyBytesOf(request)
    if (amount === 0 && !kind) return
    const taken = amount > 0 ? [bounds.takeBytes(amount, caller.organizationId)] : []
    reply.raw.on('close', () => taken.forEach((release) => void release()))
    if (kind) taken.push(bounds.take(kind, caller.organizationId))
  })
  return bounds
}
