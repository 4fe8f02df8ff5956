import { text } from 'node:stream/consumers'
import { eq, sql } from 'drizzle-orm'
import { channels, type Instance, skills } from '#database/schema.ts'
import { renderGateway, unsealInstance } from '#instances/gateway/configuration.ts'
import { configureGateway } from '#instances/gateway/configure.ts'
import type { Lease } from '#instances/lease.ts'
import { mergeForFile } from '#openclaw/config.ts'
import { configPath, gatewayCommand, gatewayEnv, gatewayFolders } from '#openclaw/launch.ts'
import { writeSystemPrompt } from '#openclaw/system-prompt.ts'
import { sandboxRestarts } from '#platform/metrics.ts'
import { connectChannels } from './channels.ts'
import { backoffSeconds, StepFailure, Uncounted } from './failures.ts'
import { howItEnded, isAnswering, isHung, waitUntilReady } from './health.ts'
import { isRefusedByProvider } from './provider-key.ts'
import type { Step, StepContext } from './step.ts'

const connectTimeoutMs = 30_000
const configMaxBytes = 4 * 1024 * 1024

/** Enough for OpenClaw 2026.9.6, which was seen to need up to 1.15 GB; drivers that cannot limit ignore it. */
const resources = { memoryMb: 2048, cpus: 2, pids: 512 }

/** Installs the release on this host if it is not there yet. Takes as long as the network does. */
const prepareRelease: Step = ({ sandboxes, lease, log, signal }) =>
  sandboxes.prepare(lease.instance.openclawVersion, (line) => log.info(line), signal)

/** Makes the sandbox, or finds the one that bears the id; a new one only for a key that the provider takes. */
const createSandbox: Step = async (context) => {
  const { sandboxes, lease, clawhubUrl, signal } = context
  const { instance } = lease
  const { state } = await sandboxes.observe(instance.id, signal)
  if (state === 'running') return
  if (state === 'absent') await refuseBadKey(context)
  await sandboxes.create(
    {
      id: instance.id,
      organizationId: instance.organizationId,
      release: instance.openclawVersion,
      command: gatewayCommand,
      env: (paths) => gatewayEnv(paths, { clawhubUrl }),
      resources,
      labels: { organization: instance.organizationId },
    },
    signal,
  )
}

async function refuseBadKey({ db, vault, lease, baseUrls, signal }: StepContext): Promise<void> {
  const provider = lease.instance.modelProvider
  const { providerKey } = await unsealInstance(db, vault, lease.instance)
  if (providerKey === null) throw noKey(provider)
  if (await isRefusedByProvider(provider, baseUrls[provider], providerKey, signal)) {
    throw new StepFailure(
      `${provider} refused your organization's API key. Set another with PATCH /v1/organization, then start the instance.`,
      { final: true },
    )
  }
}

const noKey = (provider: string) =>
  new StepFailure(
    `Your organization has no ${provider} key. Set one with PATCH /v1/organization, then start the instance.`,
    { final: true },
  )

/** A platform that says so of a sandbox that was just made may be wrong: the next attempt looks again. */
const absent = () => new StepFailure('The sandbox was not there when it was to be started.')

/** Writes the gateway's configuration while it is down; a live gateway's file is never touched. */
const writeConfig: Step = async (context) => {
  const { db, vault, baseUrls, sandboxes, lease, signal } = context
  const { state, paths } = await sandboxes.observe(lease.instance.id, signal)
  if (state === 'running') return
  if (!paths) throw absent()
  const opened = await unsealInstance(db, vault, lease.instance)
  if (opened.providerKey === null) throw noKey(lease.instance.modelProvider)
  const { config, systemPrompt } = renderGateway(lease.instance, opened, { baseUrls, port: paths.port })
  const files = sandboxes.files(lease.instance.id)
  for (const folder of gatewayFolders) await files.write(`${folder}/.keep`, Buffer.alloc(0), { mode: 0o600 }, signal)
  const existing = await files.read(configPath, { maxBytes: configMaxBytes }, signal)
  const wanted = mergeForFile(config, parseJson(existing && (await text(existing.content()))))
  await files.write(configPath, Buffer.from(`${JSON.stringify(wanted, null, 2)}\n`), { mode: 0o600 }, signal)
  await writeSystemPrompt(files, systemPrompt, signal)
}

/** The tenant may have written anything there; what cannot be read has nothing worth keeping. */
function parseJson(content: string | null): Record<string, unknown> | null {
  try {
    return content ? JSON.parse(content) : null
  } catch {
    return null
  }
}

/**
 * Starts the gateway if it does not run. The row stops being ready first, so that nobody is sent to a dead one. One that
 * has ended by itself again, before it was seen to last, is started after a pause.
 */
const startGateway: Step = async (context) => {
  const { sandboxes, lease, signal } = context
  const seen = await sandboxes.observe(lease.instance.id, signal)
  if (seen.state === 'running') return
  if (seen.state === 'absent') throw absent()
  const { exit } = seen
  const { readyAt, attempts, errorMessage } = lease.instance
  const reason = `The gateway ended by itself (${howItEnded(exit)}).`
  await forgetReadiness(lease, exit?.oom ? 'oom' : 'ended', reason)
  const isFirstTry = readyAt !== null && errorMessage === null
  if (isFirstTry && attempts > 1) throw new Uncounted(reason, backoffSeconds(attempts - 1))
  await sandboxes.start(lease.instance.id, signal)
  context.started = true
}

async function forgetReadiness(lease: Lease, reason: 'ended' | 'oom' | 'hung', errorMessage: string): Promise<void> {
  if (lease.instance.readyAt === null) return
  await lease.write({ readyAt: null, errorMessage, updatedAt: sql`now()` })
  sandboxRestarts.inc({ reason })
}

/**
 * Waits until the gateway is ready. One that ran before and does not answer any more is asked from inside its sandbox,
 * and restarted only when that fails too: a broken way to it is no reason to end an agent.
 */
const checkHealth: Step = async (context) => {
  const { lease, sandboxes, timeouts, signal } = context
  if (lease.instance.readyAt && (await isAnswering(context, await sandboxes.observe(lease.instance.id, signal)))) return
  if (lease.instance.readyAt && !(await isHung(context))) return
  if (lease.instance.readyAt) {
    context.log.warn('the gateway hangs and is restarted')
    await sandboxes.stop(lease.instance.id, { graceMs: timeouts.graceMs }, signal)
    await forgetReadiness(lease, 'hung', 'The gateway did not answer any more, and was ended.')
    await writeConfig(context)
    await startGateway(context)
  }
  await waitUntilReady(context)
}

/** Gives a gateway that was running already the stored configuration, without a restart. */
const patchConfig: Step = async (context) => {
  const { db, vault, baseUrls, sandboxes, lease, started, signal } = context
  if (started) return
  const { endpoint, paths } = await sandboxes.observe(lease.instance.id, signal)
  if (!endpoint || !paths) throw new StepFailure('The gateway ended while its configuration was changed.')
  const opened = await unsealInstance(db, vault, lease.instance)
  const { instance } = lease
  await configureGateway({ sandboxes, instance, endpoint, port: paths.port }, opened, {
    baseUrls,
    connectTimeoutMs,
    signal,
    waitForRestart: () => waitUntilReady(context),
  })
}

const stopSandbox: Step = ({ sandboxes, lease, timeouts, signal }) =>
  sandboxes.stop(lease.instance.id, { graceMs: timeouts.graceMs }, signal)

/** Credentials of channels and skills go with what they were for. */
const destroySandbox: Step = async ({ db, sandboxes, lease, signal }) => {
  const { id } = lease.instance
  await sandboxes.destroy(id, signal)
  await db.delete(channels).where(eq(channels.instanceId, id))
  await db.delete(skills).where(eq(skills.instanceId, id))
}

/** What a call of the platform, files or the gateway's RPC may take together; each is far quicker when all is well. */
const usualLimitMs = 60_000
/** The install's own limit, and a little. */
const prepareLimitMs = 16 * 60_000
/** A start's own limit, after a look at a gateway that hangs, its end, and a little. */
const healthLimitMs = 7 * 60_000
/** The step's own limit, the last change under way when it passes, and a little. */
const channelsLimitMs = 6 * 60_000

/** The whole life of an instance: for each intent, the steps that make it true, and how long each may take. */
export const plans: Record<Instance['desiredState'], readonly { step: Step; limitMs: number }[]> = {
  running: [
    { step: prepareRelease, limitMs: prepareLimitMs },
    { step: createSandbox, limitMs: usualLimitMs },
    { step: writeConfig, limitMs: usualLimitMs },
    { step: startGateway, limitMs: usualLimitMs },
    { step: checkHealth, limitMs: healthLimitMs },
    { step: patchConfig, limitMs: usualLimitMs },
    { step: connectChannels, limitMs: channelsLimitMs },
  ],
  stopped: [{ step: stopSandbox, limitMs: usualLimitMs }],
  terminated: [{ step: destroySandbox, limitMs: usualLimitMs }],
}
