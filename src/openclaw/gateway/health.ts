import { request } from 'node:http'
import type { Endpoint } from '#sandbox/driver.ts'

/**
 * Whether the gateway answers 200. `/healthz`: it is alive. `/startupz`: it has started, accepts requests and does not
 * drain. `/readyz`: in addition, every chat channel works, so a customer's bad bot token makes it false permanently.
 * Any other status, a failure and a timeout return false. Throws only the reason of an aborted signal.
 */
export async function probeHealth(
  endpoint: Endpoint,
  path: '/healthz' | '/startupz' | '/readyz',
  { timeoutMs, signal }: { timeoutMs: number; signal: AbortSignal },
): Promise<boolean> {
  signal.throwIfAborted()
  const limit = AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)])
  const address =
    endpoint.kind === 'unix'
      ? { socketPath: endpoint.path }
      : { host: endpoint.host, port: endpoint.port, headers: endpoint.headers ?? {} }
  const answer = Promise.withResolvers<boolean>()
  const probe = request({ ...address, path, agent: false, signal: limit }, (response) => {
    answer.resolve(response.statusCode === 200)
    response.destroy()
  })
  probe.on('error', () => answer.resolve(false)).end()
  const healthy = await answer.promise
  signal.throwIfAborted()
  return healthy
}
