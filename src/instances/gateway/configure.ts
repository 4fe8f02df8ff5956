import type { Instance } from '#database/schema.ts'
import type { RelayAddress } from '#instances/regions.ts'
import { writeAgentSettings } from '#openclaw/config/agent-settings.ts'
import { applyConfig } from '#openclaw/config/apply-config.ts'
import { writeDocuments } from '#openclaw/config/workspace-documents.ts'
import { connectGateway, type GatewayClient } from '#openclaw/gateway/gateway.ts'
import { GatewayRefusal, GatewayUnreachable } from '#openclaw/gateway/gateway-errors.ts'
import { cannotReadSecrets, writeSecrets } from '#openclaw/gateway/gateway-secrets.ts'
import { probeHealth } from '#openclaw/gateway/health.ts'
import { poll } from '#platform/poll.ts'
import { type Endpoint, type SandboxAccess, type SandboxPaths, useFiles } from '#sandbox/driver.ts'
import { renderGateway, secretsFor, type UnsealedInstance } from './configuration.ts'
import { relayUrlFor } from './relay-url.ts'

const restartTimeoutMs = 30_000
const probeTimeoutMs = 2000
const pauseMs = 200

interface RunningSandbox {
  sandboxes: SandboxAccess
  instance: Pick<Instance, 'id' | 'name' | 'openclawVersion' | 'modelProvider'>
  endpoint: Endpoint
  paths: SandboxPaths
}

interface ConfigureOptions {
  relay: RelayAddress
  connectTimeoutMs: number
  signal: AbortSignal
  /** Whether to wait, for 30 s at most, until a restarting gateway takes requests. True by default. */
  waitForRestart?: boolean
  /** Checks the gateway after it has applied the configuration. Its errors are rethrown without undoing the change. */
  verify?(gateway: GatewayClient): Promise<void> | undefined
}

/**
 * Gives a running gateway the configuration rendered from `unsealed`, without a restart where OpenClaw can, and writes
 * the documents of its workspace. Idempotent. Some keys make OpenClaw restart itself for 5 to 9 s; this waits for it,
 * so that the next message finds the gateway up, and returns whether it restarted. Throws GatewayRefusal, with
 * OpenClaw's message, when it refuses the configuration; GatewayUnreachable, also for a refused connection; errors of
 * the sandbox's files; the signal's reason. After a failure the gateway may have either configuration.
 */
export async function configureGateway(
  { sandboxes, instance, endpoint, paths }: RunningSandbox,
  unsealed: UnsealedInstance,
  { relay, connectTimeoutMs, signal, waitForRestart = true, verify }: ConfigureOptions,
): Promise<{ restarts: boolean }> {
  const relayUrl = await relayUrlFor(sandboxes, relay, signal)
  const { config, documents } = renderGateway(instance, unsealed, { relayUrl, paths })
  const connect = () =>
    connectGateway(endpoint, unsealed.token, { signal, timeoutMs: connectTimeoutMs }).catch((cause: unknown) => {
      throw cause instanceof GatewayRefusal ? new GatewayUnreachable(cause.message, { cause }) : cause
    })
  let gateway = await connect()
  let restarts: boolean
  const apply = () => applyConfig(gateway, config, signal, { keepsProxy: paths.proxyAsksWho === true })
  try {
    const applied = await apply().catch(async (error: unknown) => {
      if (!cannotReadSecrets(error)) throw error
      await writeSecrets(sandboxes.files(instance.id), secretsFor(instance.id, unsealed, paths), signal)
      return apply()
    })
    restarts = applied.restarts
    if (restarts && waitForRestart) {
      await untilRestarted(endpoint, signal)
      gateway.close()
      gateway = await connect()
    }
    await verify?.(gateway)
  } finally {
    gateway.close()
  }
  await useFiles(sandboxes, instance.id, async (files) => {
    await writeAgentSettings(files, signal)
    await writeDocuments(files, documents, signal)
  })
  return { restarts }
}

async function untilRestarted(endpoint: Endpoint, signal: AbortSignal): Promise<void> {
  const isUp = () => probeHealth(endpoint, '/startupz', { timeoutMs: probeTimeoutMs, signal })
  if (await poll(isUp, { pauseMs, timeoutMs: restartTimeoutMs, signal })) return
  throw new GatewayUnreachable('the gateway did not come back from its restart', { outcomeUnknown: true })
}
