import { and, eq, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type Channel, channels } from '#database/schema.ts'
import { unsealChannel, unsealInstance } from '#instances/gateway/configuration.ts'
import { configureGateway } from '#instances/gateway/configure.ts'
import { withoutCredentials } from '#openclaw/channel-credentials.ts'
import { linkChannelPlugin, needsPlugin } from '#openclaw/channel-plugins.ts'
import { connectGateway, type Endpoint, GatewayRefusal } from '#openclaw/gateway.ts'
import type { SandboxPaths } from '#sandbox/driver.ts'
import { messageFor } from './failures.ts'
import type { Step, StepContext } from './step.ts'

const connectTimeoutMs = 30_000
const loadTimeoutMs = 60_000
/** npm goes on for pages; it begins with what is wrong. */
const maxReasonLength = 500
/** All of it together: an instance is not kept from running for longer by a registry that is away. */
const maxDurationMs = 3 * 60_000

/**
 * Gives the gateway the plugins of its channels, and then the settings of those that it has not taken yet. A channel
 * for which that fails bears the reason itself, and is tried again at the next pass; the instance goes on.
 */
export const connectChannels: Step = async (context) => {
  const { db, lease, log, sandboxes, signal } = context
  const { id, openclawVersion: release } = lease.instance
  const enabled = await db
    .select()
    .from(channels)
    .where(and(eq(channels.instanceId, id), eq(channels.enabled, true)))
  const rows = enabled.filter(({ channel }) => needsPlugin(release, channel))
  if (rows.length === 0) return
  const { endpoint, paths } = await sandboxes.observe(id, signal)
  if (!endpoint || !paths) return // its end is the next pass's
  const deadline = AbortSignal.any([signal, AbortSignal.timeout(maxDurationMs)])

  const failed = async (row: Channel, step: string, error: unknown) => {
    signal.throwIfAborted()
    log.warn({ err: error, channel: row.channel }, 'a channel could not be prepared')
    if (!isWaiting(row)) return // it has worked: the next pass looks again
    const errorMessage = `The channel could not be prepared. ${messageFor(error, step).slice(0, maxReasonLength)}`
    await note(db, row, { step: null, errorMessage })
  }
  const present: { row: Channel; isNew: boolean }[] = []
  for (const row of rows) {
    try {
      present.push({ row, isNew: await installPlugin(context, row, paths, deadline) })
    } catch (error) {
      await failed(row, installPlugin.name, error)
    }
  }

  const waiting = new Set(present.map(({ row }) => row).filter(isWaiting))
  if (waiting.size === 0 && !present.some(({ isNew }) => isNew)) return
  try {
    const { token } = await unsealInstance(db, context.vault, lease.instance)
    const gateway = await connectGateway(endpoint, token, { signal: deadline, timeoutMs: connectTimeoutMs })
    try {
      await gateway.call('plugins.refresh', {}, { timeoutMs: loadTimeoutMs })
    } finally {
      gateway.close()
    }
    for (const row of waiting) {
      await configureChannel(context, { endpoint, port: paths.port }, row, deadline)
      waiting.delete(row)
    }
  } catch (error) {
    for (const row of waiting) await failed(row, configureChannel.name, error)
  }
}

const isWaiting = ({ step, errorMessage }: Channel) => step !== null || errorMessage !== null

/** Writes about a channel unless it was given other settings meanwhile. */
async function note(db: Db, row: Channel, fields: Partial<Pick<Channel, 'step' | 'enabled' | 'errorMessage'>>) {
  await db
    .update(channels)
    .set({ ...fields, updatedAt: sql`now()` })
    .where(
      and(
        eq(channels.instanceId, row.instanceId),
        eq(channels.channel, row.channel),
        eq(channels.sealedConfig, row.sealedConfig),
      ),
    )
}

async function installPlugin(
  { db, lease, log, sandboxes }: StepContext,
  row: Channel,
  paths: SandboxPaths,
  signal: AbortSignal,
) {
  const { id, openclawVersion: release } = lease.instance
  if (isWaiting(row)) await note(db, row, { step: 'installPlugin' })
  await sandboxes.prepareChannel(release, row.channel, (line) => log.info(line), signal)
  return linkChannelPlugin(sandboxes, id, { paths, release, channel: row.channel }, signal)
}

/** Settings that the gateway refuses are switched off with its reason: trying them again would change nothing. */
async function configureChannel(
  context: StepContext,
  gateway: { endpoint: Endpoint; port: number },
  row: Channel,
  signal: AbortSignal,
) {
  const { db, vault, lease, sandboxes, baseUrls } = context
  const { instance } = lease
  const opened = await unsealInstance(db, vault, lease.instance)
  const settings = unsealChannel(vault, row)
  const withChannel = { ...opened, channels: [...opened.channels, settings] }
  await note(db, row, { step: 'configureChannel' })
  try {
    await configureGateway({ sandboxes, instance, ...gateway }, withChannel, { baseUrls, connectTimeoutMs, signal })
  } catch (error) {
    if (!(error instanceof GatewayRefusal)) throw error
    const errorMessage = `OpenClaw refused the settings: ${withoutCredentials(error.message, settings.config)}`
    return note(db, row, { step: null, enabled: false, errorMessage })
  }
  return note(db, row, { step: null, errorMessage: null })
}
