import { text } from 'node:stream/consumers'
import type { SandboxFiles } from '#sandbox/driver.ts'

/** Settings that OpenClaw reads at each turn from the folder of its agent. `openclaw.json` has no names for them. */
const settingsPath = 'state/agents/main/agent/settings.json'

/**
 * OpenClaw repeats a refused or broken request to the provider, by default for 70 to 160 s. One repetition, after about
 * a second or the provider's `Retry-After`, is enough for a short fault, and a long one reaches the caller soon.
 */
const settings = { retry: { provider: { maxRetries: 1 } } }

const content = `${JSON.stringify(settings, null, 2)}\n`
const maxBytes = 64 * 1024

/**
 * Writes the settings of the agent unless they are there: a reconcile must not need space on a full disk. They take
 * effect at its next turn, also while the gateway runs.
 */
export async function writeAgentSettings(files: SandboxFiles, signal: AbortSignal): Promise<void> {
  const existing = await files.read(settingsPath, { maxBytes }, signal)
  if (existing && (await text(existing.content())) === content) return
  await files.write(settingsPath, Buffer.from(content), { mode: 0o600 }, signal)
}
