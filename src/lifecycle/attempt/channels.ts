import { isDeepStrictEqual } from 'node:util'
import { and, eq, sql } from 'drizzle-orm'
import { type Channel, channels } from '#database/schema.ts'
import { unsealChannel, unsealInstance } from '#instances/gateway/configuration.ts'
import { configureGateway } from '#instances/gateway/configure.ts'
import { withoutCredentials } from '#openclaw/config/channel-credentials.ts'
import { connectGateway } from '#openclaw/gateway/gateway.ts'
import { GatewayRefusal } from '#openclaw/gateway/gateway-errors.ts'
import { linkChannelPlugin, needsPlugin } from '#openclaw/release/channel-plugins.ts'
import type { Vault } from '#platform/secrets.ts'
import type { Endpoint, SandboxPaths } from '#sandbox/driver.ts'
import { failureOf } from './failures.ts'
import { done, type Step, type StepContext } from './step.ts'

const connectTimeoutMs = 30_000
const loadTimeoutMs = 60_000
/** npm's messages are pages long; the cause comes first. */
const maxReasonLength = 500
/** Limit of the whole step: an npm registry that does not answer delays a running instance by this at most. */
const maxDurationMs = 3 * 60_000

/**
 * Installs the plugins of the instance's channels, then gives the gateway the settings of the pending ones. The step is
 * done even when a channel fails: the channel's row shows the reason, and the next attempt tries it again.
 */
export const connectChannels: Step = async (context) => {
  const { db, lease, sandboxes, signal } = context
  const { id, openclawVersion: release } = lease.instance
  const enabled = await db
    .select()
    .from(channels)
    .where(and(eq(channels.instanceId, id), eq(channels.enabled, true)))
  const rows = enabled.filter(({ channel }) => needsPlugin(release, channel))
  if (rows.length === 0) return done
  const { endpoint, paths } = await sandboxes.observe(id, signal)
  if (!endpoint || !paths) return done // the gateway has ended, which this run's last check finds
  const deadline = AbortSignal.any([signal, AbortSignal.timeout(maxDurationMs)])
  const installed: { row: Channel; isNew: boolean }[] = []
  for (const row of rows) {
    try {
      installed.push({ row, isNew: await installPlugin(context, row, paths, deadline) })
    } catch (error) {
      await recordFailure(context, row, installPlugin.name, error)
    }
  }
  const pending = installed.map(({ row }) => row).filter(isPending)
  if (pending.length > 0 || installed.some(({ isNew }) => isNew)) {
    await configureChannels(context, { endpoint, paths }, pending, deadline)
  }
  return done
}

/** Lets the gateway load new plugins, then gives it the settings of the channels. Failures are recorded, not thrown. */
async function configureChannels(
  context: StepContext,
  { endpoint, paths }: { endpoint: Endpoint; paths: SandboxPaths },
  rows: readonly Channel[],
  signal: AbortSignal,
): Promise<void> {
  const remaining = new Set(rows)
  try {
    const { token } = await unsealInstance(context.db, context.vault, context.lease.instance)
    const gateway = await connectGateway(endpoint, token, { signal, timeoutMs: connectTimeoutMs })
    try {
      await gateway.call('plugins.refresh', {}, { timeoutMs: loadTimeoutMs })
    } finally {
      gateway.close()
    }
    for (const row of rows) {
      await configureChannel(context, { endpoint, paths }, row, signal)
      remaining.delete(row)
    }
  } catch (error) {
    for (const row of remaining) await recordFailure(context, row, configureChannel.name, error)
  }
}

/** Throws the signal's reason when the step is aborted: the channel did not fail then. */
async function recordFailure(context: StepContext, row: Channel, step: string, error: unknown) {
  const { log, signal } = context
  signal.throwIfAborted()
  log.warn({ err: error, channel: row.channel }, 'could not prepare a channel')
  if (!isPending(row)) return // the channel has worked before: the next attempt tries again
  const errorMessage = `The channel could not be prepared. ${failureOf(error, step).reason.slice(0, maxReasonLength)}`
  await updateChannel(context, row, { step: null, errorMessage })
}

/** Whether the gateway has yet to accept the channel's settings. */
const isPending = ({ step, errorMessage }: Channel) => step !== null || errorMessage !== null

/**
 * Updates a channel's row, unless its settings were replaced meanwhile. Settings that were only resealed with another
 * secret key count as unchanged.
 */
async function updateChannel(
  { db, vault }: Pick<StepContext, 'db' | 'vault'>,
  row: Channel,
  fields: Partial<Pick<Channel, 'step' | 'enabled' | 'errorMessage'>>,
): Promise<void> {
  const own = and(eq(channels.instanceId, row.instanceId), eq(channels.channel, row.channel))
  await db.transaction(async (tx) => {
    const [stored] = await tx.select().from(channels).where(own).for('update')
    if (!stored || !hasSameSettings(vault, stored, row)) return
    await tx
      .update(channels)
      .set({ ...fields, updatedAt: sql`now()` })
      .where(own)
  })
}

const hasSameSettings = (vault: Vault, a: Channel, b: Channel): boolean =>
  a.sealedConfig === b.sealedConfig || isDeepStrictEqual(unsealChannel(vault, a).config, unsealChannel(vault, b).config)

async function installPlugin(context: StepContext, row: Channel, paths: SandboxPaths, signal: AbortSignal) {
  const { lease, log, sandboxes } = context
  const { id, openclawVersion: release } = lease.instance
  if (isPending(row)) await updateChannel(context, row, { step: 'installPlugin' })
  await sandboxes.prepareChannel(release, row.channel, (line) => log.info(line), signal)
  return linkChannelPlugin(sandboxes, id, { paths, release, channel: row.channel }, signal)
}

/** Disables a channel whose settings the gateway refuses, with the reason: another attempt would be refused too. */
async function configureChannel(
  context: StepContext,
  gateway: { endpoint: Endpoint; paths: SandboxPaths },
  row: Channel,
  signal: AbortSignal,
) {
  const { db, vault, lease, sandboxes, relay } = context
  const { instance } = lease
  const unsealed = await unsealInstance(db, vault, lease.instance)
  const settings = unsealChannel(vault, row)
  const withChannel = { ...unsealed, channels: [...unsealed.channels, settings] }
  await updateChannel(context, row, { step: 'configureChannel' })
  try {
    await configureGateway({ sandboxes, instance, ...gateway }, withChannel, { relay, connectTimeoutMs, signal })
  } catch (error) {
    if (!(error instanceof GatewayRefusal)) throw error
    const errorMessage = `OpenClaw refused the settings: ${withoutCredentials(error.message, settings.config)}`
    return updateChannel(context, row, { step: null, enabled: false, errorMessage })
  }
  return updateChannel(context, row, { step: null, errorMessage: null })
}
