import type { IncomingMessage, ServerResponse } from 'node:http'
import type { ModelProvider } from '#database/schema.ts'
import { texts } from '#errors/texts.ts'
import { isRelayToken } from '#instances/gateway/tokens.ts'
import { poolOrganizationId } from '#instances/warm-pool.ts'
import type { Logger } from '#platform/log.ts'
import { logFirstAndRecovery } from '#platform/log.ts'
import { relayAddedDuration, relayCalls, relayOpenCalls, relayWaits } from '#platform/metrics.ts'
import { createRefusals, type PlaceLimits, type Places } from '#platform/throttle.ts'
import { BodyTooLarge, type ClientBody, readBody } from './body.ts'
import { type CallEnd, type CallObserver, CallRefused, type ObserveCall } from './call.ts'
import { forward } from './forward.ts'
import type { FindGrant, Grant, ProviderKey } from './grants.ts'
import { toVendor } from './headers.ts'
import type { Pace } from './pace.ts'
import { readTarget, type Target } from './target.ts'
import type { Upstreams } from './upstreams.ts'
import { vendors } from './vendors.ts'

/** More than the vendors accept. */
const maxBodyBytes = 40 * 1024 * 1024
/** Retry pauses when the capacity is used up, and when the database is unreachable. */
const retryAfterSeconds = 1
/** Longer than a worker takes to end the runs of an agent whose token was taken away. */
const afterEndedTokenSeconds = 5

const tokenRefused = new Error('the token of the call is refused')
const clientLeft = new Error('the client left')

interface RelayParts {
  findGrant: FindGrant
  pace: Pace
  places: Places
  upstreams: Upstreams
  observe: ObserveCall
  log: Logger
}

export interface Relay {
  /** Answers one request. Never throws. */
  answer(request: IncomingMessage, response: ServerResponse): Promise<void>
  /** Ends the open calls whose token is now refused. */
  recheck(): Promise<void>
  /** The number of open calls. */
  readonly open: number
}

type UsableGrant = Grant & { key: ProviderKey }

interface OpenCall {
  token: string
  end: AbortController
}

/** OpenClaw runs a few turns at a time. */
export const defaultPlaces: PlaceLimits = { perInstance: 32, perOrganization: 1000, perSecond: 200 }

/** Passes calls of agents on to the model providers, with the keys of their organizations. */
export function createRelay({ findGrant, pace, places, upstreams, observe, log }: RelayParts): Relay {
  const open = new Set<OpenCall>()
  const refusals = createRefusals()
  const outages = new Map<ModelProvider, ReturnType<typeof logFirstAndRecovery>>()
  const outageOf = (provider: ModelProvider) => {
    const known = outages.get(provider)
    if (known) return known
    const made = logFirstAndRecovery(log, `${provider} cannot be reached`, `${provider} can be reached again`)
    outages.set(provider, made)
    return made
  }

  /** A token that was taken away is no 401: OpenClaw would put the provider's key on hold, for all sessions. */
  async function refuseToken(token: string | null): Promise<never> {
    if (!(await refusals.wait())) throw tokenRefused
    if (token !== null && isRelayToken(token)) throw new CallRefused(503, texts.relayTokenEnded, afterEndedTokenSeconds)
    throw new CallRefused(401, texts.relayToken)
  }

  async function grantOf({ provider, token }: Target): Promise<UsableGrant> {
    if (token === null) return refuseToken(null)
    const grant = await findGrant(token).catch((error: unknown) => {
      log.warn({ err: error }, 'the token of a call could not be looked up')
      throw new CallRefused(503, texts.relayUnavailable, retryAfterSeconds)
    })
    if (!grant) return refuseToken(token)
    if (grant.provider !== provider) return refuseToken(null)
    if (grant.organizationId === poolOrganizationId) throw new CallRefused(400, texts.relayWarm)
    if (!grant.key) throw new CallRefused(401, texts.noProviderKey(provider))
    return { ...grant, key: grant.key }
  }

  /**
   * Waits until the pace allows the call, and sends it. Throws the errors of `forward`, the signal's reason, and
   * CallRefused.
   */
  async function send(
    target: Target,
    granted: UsableGrant,
    request: IncomingMessage,
    response: ServerResponse,
    { end, beganAt }: { end: AbortController; beganAt: number },
  ): Promise<void> {
    const { provider, path, query } = target
    const { signal } = end
    const waitsFrom = performance.now()
    const hasWaited = await pace.wait(granted.key.id, signal)
    const waitedMs = performance.now() - waitsFrom
    if (hasWaited) relayWaits.observe({ provider }, waitedMs / 1000)
    // The key may have changed meanwhile.
    const { key, region: _, ...allowed } = hasWaited ? await grantOf(target) : granted
    const upstream = upstreams.of(provider, granted.region)
    if (!upstream) throw new CallRefused(503, texts.relayUnavailable, retryAfterSeconds)
    const { pool, basePath } = upstream
    const method = request.method ?? ''
    const call = { ...allowed, provider, method, path }
    const observer: CallObserver = observe(call, (refusal) => end.abort(refusal)) ?? {}
    const headers = toVendor(request.headers, vendors[provider].keyHeader(key.value))
    const body = method === 'GET' ? null : readBody(request, maxBodyBytes, (bytes) => observer.asked?.(bytes))
    let outcome: CallEnd = 'refused'
    try {
      if (body) await admit(observer, body, signal)
      relayAddedDuration.observe((performance.now() - beganAt - waitedMs) / 1000)
      outcome = 'vendor failed'
      await forward(
        pool,
        {
          path: `${basePath}${path}${query}`,
          method,
          headers,
          body: body?.chunks(),
          signal,
        },
        response,
        {
          answer(status, answered, waitMs) {
            relayCalls.inc({ provider, status: String(status) })
            outageOf(provider).recovered()
            pace.record(key.id, status, waitMs)
            observer.answer?.(status, answered)
          },
          chunk: (bytes) => observer.chunk?.(bytes),
        },
      )
      outcome = 'answered'
    } catch (error) {
      if (outcome === 'refused') throw error
      if (error === clientLeft) outcome = 'client left'
      else if (error === tokenRefused) outcome = 'token refused'
      else if (error instanceof BodyTooLarge) outcome = 'too large'
      else if (error instanceof CallRefused) outcome = 'refused'
      else outageOf(provider).failed(error)
      throw error
    } finally {
      observer.end?.(outcome)
    }
  }

  async function relay(target: Target, request: IncomingMessage, response: ServerResponse): Promise<void> {
    const beganAt = performance.now()
    if (!target.isAllowed) throw new CallRefused(404, texts.relayRoute(request.method ?? '', target.path))
    if (Number(request.headers['content-length'] ?? 0) > maxBodyBytes) throw new BodyTooLarge()
    const grant = await grantOf(target)
    const leave = places.take(grant.instanceId, grant.organizationId)
    if (!leave) throw new CallRefused(429, texts.relayPlaces, retryAfterSeconds)
    const call: OpenCall = { token: target.token ?? '', end: new AbortController() }
    const onClose = () => call.end.abort(clientLeft)
    response.once('close', onClose)
    open.add(call)
    relayOpenCalls.inc()
    try {
      if (response.destroyed) throw clientLeft
      await send(target, grant, request, response, { end: call.end, beganAt })
    } finally {
      response.off('close', onClose)
      open.delete(call)
      relayOpenCalls.dec()
      leave()
    }
  }

  /**
   * Answers a call that failed. Cuts the connection if the vendor did: OpenClaw distinguishes that from an error, and
   * no client mistakes a partial answer for the whole.
   */
  function fail(error: unknown, provider: ModelProvider, response: ServerResponse): void {
    const refusal = refusalOf(error, provider)
    if (!refusal || response.headersSent || response.destroyed) {
      const isOfVendor = error !== clientLeft && error !== tokenRefused && !response.headersSent
      if (isOfVendor) relayCalls.inc({ provider, status: 'cut' })
      response.destroy()
      return
    }
    const { status, message, retryAfterSeconds: seconds = null } = refusal
    relayCalls.inc({ provider, status: `relay ${status}` })
    const headers = {
      'content-type': 'application/json',
      connection: 'close', // the rest of the request is not read
      ...(seconds !== null && { 'retry-after': String(seconds) }),
      ...(seconds === null && status === 429 && { 'x-should-retry': 'false' }),
    }
    response.writeHead(status, headers).end(JSON.stringify(vendors[provider].error(status, message)))
  }

  return {
    async answer(request, response) {
      response.on('error', () => {}) // a client that left while the answer was written
      const target = readTarget(request.method ?? '', request.url ?? '', request.headers)
      if (!target) {
        response.writeHead(404, { 'content-type': 'text/plain', connection: 'close' }).end(`${texts.relayPaths}\n`)
        return
      }
      await relay(target, request, response).catch((error: unknown) => fail(error, target.provider, response))
    },
    async recheck() {
      const checks = [...open].map(async ({ token, end }) => {
        // While the database is unreachable, tokens stay valid.
        const grant = await findGrant(token).catch(() => undefined)
        if (grant === null) end.abort(tokenRefused)
      })
      await Promise.all(checks)
    },
    get open() {
      return open.size
    },
  }
}

/** Waits for the observer's permission. Throws CallRefused, BodyTooLarge, and the signal's reason. */
async function admit(observer: CallObserver, body: ClientBody, signal: AbortSignal): Promise<void> {
  const { promise: aborted, reject } = Promise.withResolvers<never>()
  const onAbort = () => reject(signal.reason)
  signal.addEventListener('abort', onAbort, { once: true })
  try {
    await Promise.race([observer.admit?.(body), aborted])
  } catch (error) {
    // A body that is being read breaks off with its connection.
    throw signal.aborted ? signal.reason : error
  } finally {
    signal.removeEventListener('abort', onAbort)
  }
}

/** The relay's own answer; null if there is none. */
function refusalOf(
  error: unknown,
  provider: ModelProvider,
): (Pick<CallRefused, 'status' | 'message'> & Partial<Pick<CallRefused, 'retryAfterSeconds'>>) | null {
  if (error instanceof CallRefused) return error
  if (error instanceof BodyTooLarge) return { status: 413, message: texts.relayBody(maxBodyBytes) }
  const { code } = error as NodeJS.ErrnoException
  const isSilent = code === 'UND_ERR_HEADERS_TIMEOUT' || code === 'UND_ERR_BODY_TIMEOUT'
  return isSilent ? { status: 504, message: texts.relaySilent(provider) } : null
}
