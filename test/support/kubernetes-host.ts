import { once } from 'node:events'
import { request } from 'node:http'
import { text } from 'node:stream/consumers'
import type { Observation, SandboxDriver } from '#sandbox/driver.ts'
import { createKubernetesDriver } from '#sandbox/kubernetes/driver.ts'
import type { KubernetesDriverOptions } from '#sandbox/kubernetes/settings.ts'
import { contractBuild, contractCommand, contractRelease } from './docker-host.ts'
import type { DriverUnderTest } from './driver-contract.ts'
import { present } from './present.ts'
import { until } from './until.ts'

/** The driver of an installation in a cluster, with sandboxes whose gateway is a small program. */
export const kubernetesDriver = (
  options: Pick<KubernetesDriverOptions, 'cluster' | 'namespace' | 'installation'> & Partial<KubernetesDriverOptions>,
): SandboxDriver =>
  createKubernetesDriver({
    socketFolder: null,
    controlNamespace: null,
    relayUrl: new URL('http://10.99.0.1:8090'),
    repository: 'registry.test/chowder-openclaw',
    ...contractBuild,
    releaseSource: () => contractRelease,
    admission: { tokenFile: 'token.json', tokenKeys: ['token'], openPaths: ['/healthz'] },
    storageClass: null,
    requestPercent: 10,
    runtimeClass: null,
    ...options,
  })

const within = () => AbortSignal.timeout(20_000)
const token = 'the-gateways-token'

/** What the contract of drivers needs besides, for a driver whose gateways are reached by a unix socket. */
export function contractSubject(driver: SandboxDriver, close: () => Promise<void>): DriverUnderTest {
  const get = async ({ endpoint }: Observation, path: string): Promise<string> => {
    const { path: socketPath } = present(endpoint) as { path: string }
    const asking = request({ socketPath, path, headers: { authorization: `Bearer ${token}` } })
    const [answer] = await once(asking.end(), 'response')
    if (answer.statusCode !== 200) throw new Error(`the gateway answers ${answer.statusCode}`)
    return text(answer)
  }
  const give = (id: string) =>
    driver.files(id).write('token.json', Buffer.from(JSON.stringify({ token })), {}, within())
  const ask = async (id: string, seen: Observation, path: string) => {
    await give(id)
    return until(`an answer to ${path}`, () => get(seen, path).catch(() => ''), 20_000)
  }
  return {
    driver,
    command: (paths) => contractCommand(paths),
    async endGateway(id, seen, code) {
      await ask(id, seen, '/whoami')
      await get(seen, `/exit/${code}`).catch(() => {}) // it ends instead of answering
    },
    gatewayOf: async (id, seen) => JSON.parse(await ask(id, seen, '/whoami')).pid,
    async setLoop(id, seen, loop) {
      await ask(id, seen, '/whoami')
      void get(seen, `/${loop}`).catch(() => {}) // it is ended meanwhile
    },
    runsPrograms: true,
    keepsLimits: true,
    changesLimits: false,
    measuresStopped: false,
    close,
  }
}
