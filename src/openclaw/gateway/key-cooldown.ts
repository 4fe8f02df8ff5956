import type { ModelProvider } from '#database/schema.ts'
import { gatewayProviders } from '#openclaw/models/providers.ts'
import type { SandboxAccess, SandboxPaths } from '#sandbox/driver.ts'
import type { GatewayClient } from './gateway.ts'

const timeoutMs = 10_000

/** The longest time for which OpenClaw does not use a key after a refusal. */
export const maxCooldownMinutes = 10

/**
 * Deletes the recorded refusals from OpenClaw's database, which a new agent does not have yet. The gateway and this
 * code may have it open at the same time.
 */
const forgetRefusal = `
const { DatabaseSync } = require('node:sqlite')
const [path, id] = process.argv.slice(1)
if (!require('node:fs').existsSync(path)) process.exit()
const database = new DatabaseSync(path, { timeout: 5000 })
database.prepare("UPDATE auth_profile_state SET state_json = json_remove(state_json, '$.usageStats.\\"' || ? || '\\"')").run(id)
database.close()`

interface RunningSandbox {
  sandboxes: Pick<SandboxAccess, 'exec'>
  instanceId: string
  paths: SandboxPaths
}

/**
 * Makes a running gateway use the key of its provider again, also after a refusal. OpenClaw 2026.9.6 pauses the key for
 * 30 s then, and for 10 minutes over billing or a closed account. It records the refusal for the provider and not for
 * the key, also over a restart, and has no call to forget it. Returns whether that succeeded. Throws only the signal's
 * reason.
 */
export async function liftKeyCooldown(
  gateway: GatewayClient,
  { sandboxes, instanceId, paths }: RunningSandbox,
  provider: ModelProvider,
  signal: AbortSignal,
): Promise<boolean> {
  const database = `${paths.home}/state/agents/main/agent/openclaw-agent.sqlite`
  const argv = [paths.node, '-e', forgetRefusal, database, `inline-api-key:${gatewayProviders[provider].id}`]
  try {
    const { exitCode } = await sandboxes.exec(instanceId, argv, { timeoutMs, maxBytes: 0 }, signal)
    // Makes the gateway reread its database.
    await gateway.call('models.authRefresh', { operation: 'update' }, { timeoutMs })
    return exitCode === 0
  } catch {
    signal.throwIfAborted()
    return false
  }
}
