import { text } from 'node:stream/consumers'
import { isDeepStrictEqual } from 'node:util'
import { and, eq, gt, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { egressHosts } from '#database/egress-schema.ts'
import { channels, type Instance, instanceUse, providerKeys, skills } from '#database/schema.ts'
import { texts } from '#errors/texts.ts'
import { renderGateway, secretsFor, unsealInstance } from '#instances/gateway/configuration.ts'
import { configureGateway } from '#instances/gateway/configure.ts'
import { relayUrlFor } from '#instances/gateway/relay-url.ts'
import { replaceTokens } from '#instances/gateway/tokens.ts'
import type { Lease } from '#instances/lease.ts'
import { findLimits, forDriver } from '#instances/resources.ts'
import { unsealToken } from '#instances/row.ts'
import { maySleepFrozen } from '#instances/status.ts'
import { writeAgentSettings } from '#openclaw/config/agent-settings.ts'
import { mergeForFile } from '#openclaw/config/config.ts'
import { writeDocuments } from '#openclaw/config/workspace-documents.ts'
import { endRuns } from '#openclaw/gateway/end-runs.ts'
import { connectGateway, type GatewayClient } from '#openclaw/gateway/gateway.ts'
import { GatewayUnreachable } from '#openclaw/gateway/gateway-errors.ts'
import { writeSecrets } from '#openclaw/gateway/gateway-secrets.ts'
import { findWork, suspendFor } from '#openclaw/gateway/idle.ts'
import { liftKeyCooldown, maxCooldownMinutes } from '#openclaw/gateway/key-cooldown.ts'
import {
  configBackupPath,
  configPath,
  endedByItselfPath,
  gatewayCommand,
  gatewayEnv,
  gatewayFolders,
  pluginsInWorkspace,
  roomFolders,
  toolRoom,
} from '#openclaw/inside/launch.ts'
import { parseObject } from '#openclaw/json.ts'
import { refusalOf } from '#openclaw/release/advisories.ts'
import { logProgress } from '#platform/log.ts'
import { sandboxRestarts } from '#platform/metrics.ts'
import {
  SandboxCapacityError,
  type SandboxFiles,
  SandboxPathError,
  type SandboxPaths,
  useFiles,
} from '#sandbox/driver.ts'
import { busyAgain, diagnose } from './diagnose.ts'
import { findDiskProblem } from './disk-problem.ts'
import { backoffSeconds } from './failures.ts'
import { describeExit, waitUntilReady } from './health.ts'
import { findKeyMissing, findKeyProblem } from './provider-key.ts'
import { again, done, failed, failedForGood, gatewayStarted, type Step, type StepContext } from './step.ts'

const connectTimeoutMs = 30_000
/** Time limit of optional calls of a gateway. */
const optionalConnectTimeoutMs = 5000
/** Time to end all runs of an agent: the rest of the step's time must suffice for its stop. */
const endRunsTimeoutMs = 15_000
const configMaxBytes = 4 * 1024 * 1024

/** Installs the release on this host if it is missing. The network sets the duration. */
export const prepareRelease: Step = async ({ sandboxes, lease, log, signal }) => {
  await sandboxes.prepare(lease.instance.openclawVersion, logProgress(log), signal)
  return done
}

/**
 * Ends the gateway of an instance that is to be restarted, and one that runs without a valid relay token: a gateway
 * gets tokens only at its start. Clears the restart mark as well: a gateway that is started afterwards is not ended
 * again.
 */
export const stopForRestart: Step = async (context) => {
  const { sandboxes, lease, timeouts, signal } = context
  const { id, restartGeneration, observedGeneration, relayTokenHash } = lease.instance
  const isRestart = restartGeneration !== null && restartGeneration > observedGeneration
  const runs = async () => ['running', 'frozen'].includes((await sandboxes.observe(id, signal)).state)
  if (!isRestart && (relayTokenHash !== null || !(await runs()))) return done
  await endAgentRuns(context)
  await sandboxes.stop(id, { graceMs: timeouts.graceMs }, signal)
  await lease.write({ restartGeneration: null, readyAt: null, busy: null })
  return done
}

/**
 * Lets a frozen gateway go on, and take requests. It has the stored configuration: a change takes its token, so that it
 * was ended by now. A worker that ends in between leaves a gateway that takes no request for at most two minutes.
 */
export const thawSandbox: Step = async ({ sandboxes, vault, lease, signal }) => {
  const { id } = lease.instance
  if ((await sandboxes.observe(id, signal)).state !== 'frozen') return done
  await sandboxes.thaw?.(id, signal)
  const { endpoint } = await sandboxes.observe(id, signal)
  if (!endpoint) return failed('The gateway ended while it was frozen.')
  const token = unsealToken(vault, lease.instance)
  const gateway = await connectGateway(endpoint, token, { signal, timeoutMs: connectTimeoutMs })
  await findWork(gateway, id).finally(() => gateway.close())
  return gatewayStarted
}

/**
 * Creates the sandbox, or finds the existing one. Creates one only with a key that the provider accepts, and keeps one
 * that does not run only with a release that may be started.
 */
export const createSandbox: Step = async (context) => {
  const { db, sandboxes, lease, clawhubUrl, resources, minOpenclawVersion, signal } = context
  const { instance } = lease
  const { state } = await sandboxes.observe(instance.id, signal)
  if (state === 'running') return done
  const refusal = refusalOf(instance.openclawVersion, minOpenclawVersion)
  if (refusal) return failedForGood(refusal)
  if (instance.isolation === 'two_rooms' && !sandboxes.hasTwoRooms) return failedForGood(texts.noTwoRooms)
  const problem = state === 'absent' && (await findKeyProblem(context))
  if (problem) return problem
  await sandboxes.create(
    {
      id: instance.id,
      organizationId: instance.organizationId,
      release: instance.openclawVersion,
      command: gatewayCommand,
      env: (paths) => gatewayEnv(paths, { clawhubUrl }),
      resources: forDriver(await findLimits(db, instance, resources)),
      ...(instance.isolation === 'two_rooms' && { room: toolRoom }),
      labels: { organization: instance.organizationId },
    },
    signal,
  )
  return done
}

/** Not final: a platform may wrongly report a sandbox absent that was just created. */
const sandboxAbsent = failed('The sandbox was absent after it was created.')

/**
 * Writes the configuration and new secrets of a gateway that does not run. Never changes the files of a live gateway.
 */
export const writeConfig: Step = async (context) => {
  const { db, vault, relay, sandboxes, lease, signal } = context
  const { state, paths } = await sandboxes.observe(lease.instance.id, signal)
  if (state === 'running') return done
  if (!paths) return sandboxAbsent
  const problem = await findKeyMissing(context)
  if (problem) return problem
  const relayUrl = await relayUrlFor(sandboxes, relay, signal)
  await replaceTokens(lease, vault)
  const unsealed = await unsealInstance(db, vault, lease.instance)
  const { config, documents } = renderGateway(lease.instance, unsealed, { relayUrl, paths })
  const secrets = secretsFor(lease.instance.id, unsealed, paths)
  await useFiles(sandboxes, lease.instance.id, async (files) => {
    await clearPaths(files, paths, signal)
    const existing = await files.read(configPath, { maxBytes: configMaxBytes }, signal)
    const wanted = mergeForFile(config, parseObject(existing && (await text(existing.content()))))
    await files.remove(configBackupPath, { recursive: true }, signal)
    await writeSecrets(files, secrets, signal)
    await files.write(configPath, Buffer.from(`${JSON.stringify(wanted, null, 2)}\n`), { mode: 0o600 }, signal)
    await writeAgentSettings(files, signal)
    await writeDocuments(files, documents, signal)
    // An intent clears both.
    const { readyAt, attempts } = lease.instance
    if (readyAt === null && attempts <= 1) await files.remove(endedByItselfPath, { recursive: true }, signal)
    else await files.write(endedByItselfPath, Buffer.alloc(0), { mode: 0o600 }, signal)
  })
  return done
}

/** Makes the folders of the gateway, and removes whatever the tenant has put in place of a folder or a file. */
async function clearPaths(files: SandboxFiles, paths: SandboxPaths, signal: AbortSignal): Promise<void> {
  const folders = paths.room ? [...gatewayFolders, ...roomFolders] : gatewayFolders
  const makeFolders = async () => {
    for (const folder of folders) await files.write(`${folder}/.keep`, Buffer.alloc(0), { mode: 0o600 }, signal)
    const config = await files.stat(configPath, signal)
    if (config && config.kind !== 'file') await files.remove(configPath, { recursive: true }, signal)
  }
  await makeFolders().catch(async (error) => {
    if (!(error instanceof SandboxPathError)) throw error
    await clearFolders(files, folders, signal)
    await makeFolders()
  })
  if (paths.room) await files.remove(pluginsInWorkspace, { recursive: true }, signal)
}

/** Removes whatever the tenant has put in place of the gateway's folders, such as a link. Keeps folders. */
async function clearFolders(files: SandboxFiles, folders: readonly string[], signal: AbortSignal): Promise<void> {
  for (const folder of folders) {
    for (const [path, kind] of [
      [folder, 'directory'],
      [`${folder}/.keep`, 'file'],
    ] as const) {
      const stat = await files.stat(path, signal)
      if (stat && stat.kind !== kind) await files.remove(path, { recursive: true }, signal)
    }
  }
}

/** Waits for a free start, see `createStartLimit`. */
export const waitForStarts: Step = async ({ sandboxes, lease, starts, signal }) => {
  const { id, organizationId } = lease.instance
  const { state } = await sandboxes.observe(id, signal)
  if (state === 'running' || (await starts.enter(id, organizationId, signal))) return done
  return again(backoffSeconds(1), 'Too many gateways start at the same time.')
}

/**
 * Starts the gateway if it does not run. Marks the row as not ready first, so that no request is sent to an ended
 * gateway. Pauses before starting a gateway that ended by itself before it had been healthy for long.
 */
export const startGateway: Step = async (context) => {
  const { sandboxes, lease, signal } = context
  const { state, exit } = await sandboxes.observe(lease.instance.id, signal)
  if (state === 'running') return done
  if (state === 'absent') return sandboxAbsent
  const { readyAt, attempts, errorMessage } = lease.instance
  const reason = `The gateway ended by itself (${describeExit(exit)}).`
  await forgetReadiness(lease, exit?.oom ? 'oom' : 'ended', reason)
  const isFirstTry = readyAt !== null && errorMessage === null
  if (isFirstTry && attempts > 1) return again(backoffSeconds(attempts - 1), reason)
  const problem = await findDiskProblem(context)
  if (problem) return problem
  await sandboxes.start(lease.instance.id, signal)
  return gatewayStarted
}

/** Applies the limits to a running sandbox, and records which of them its platform enforces. */
export const limitSandbox: Step = async ({ db, sandboxes, lease, resources, startedGateway, signal }) => {
  const { instance } = lease
  const asked = await findLimits(db, instance, resources)
  if (!startedGateway && isDeepStrictEqual(instance.limits?.asked, asked)) return done
  const {
    memoryMb: memory_mb,
    cpus,
    pids,
    diskMb: disk_mb,
  } = await sandboxes.limit(instance.id, forDriver(asked), signal)
  await lease.write({ limits: { asked, kept: { memory_mb, cpus, pids, disk_mb } } })
  return done
}

/** Records that the gateway no longer runs. */
export async function forgetReadiness(
  lease: Lease,
  reason: 'ended' | 'oom' | 'hung',
  errorMessage: string,
): Promise<void> {
  if (lease.instance.readyAt === null) return
  await lease.write({ readyAt: null, busy: null, errorMessage, updatedAt: sql`now()` })
  sandboxRestarts.inc({ reason })
}

/**
 * Gives a gateway that was already running the stored configuration, without a restart. Clears the cooldown of a
 * provider key that may have been corrected.
 */
export const patchConfig: Step = async (context) => {
  const { db, vault, relay, sandboxes, lease, startedGateway, log, signal } = context
  const { instance } = lease
  if (startedGateway && !(await hasNewKey(db, instance))) return done
  const { endpoint, paths } = await sandboxes.observe(instance.id, signal)
  if (!endpoint || !paths) return failed('The gateway ended while its configuration was changed.')
  const unsealed = await unsealInstance(db, vault, lease.instance)
  const warn = () =>
    log.warn('could not clear the cooldown of the provider key in OpenClaw; the key may be unused for some minutes')
  const liftCooldown = async (gateway: GatewayClient) => {
    const place = { sandboxes, instanceId: instance.id, paths }
    if (!(await liftKeyCooldown(gateway, place, instance.modelProvider, signal))) warn()
  }
  if (startedGateway) {
    // A gateway that cannot be asked still runs: its problem is not this step's concern.
    await connectGateway(endpoint, unsealed.token, { signal, timeoutMs: optionalConnectTimeoutMs }).then(
      (gateway) => liftCooldown(gateway).finally(() => gateway.close()),
      () => {
        signal.throwIfAborted()
        warn()
      },
    )
    return done
  }
  const sandbox = { sandboxes, instance, endpoint, paths }
  const options = { relay, connectTimeoutMs, signal, waitForRestart: false, verify: liftCooldown }
  const configured = await configureGateway(sandbox, unsealed, options).catch(async (error: unknown) => {
    // A gateway that answered a moment ago and works again has not failed.
    if (error instanceof GatewayUnreachable && typeof (await diagnose(context)) === 'object') return null
    if (!(error instanceof SandboxCapacityError)) throw error
    // The agent works on. Its documents are written by the next change or start that finds space.
    log.warn({ err: error }, 'the documents of the workspace keep their former texts')
    return { restarts: false }
  })
  if (!configured) return busyAgain
  return configured.restarts ? waitUntilReady(context) : done
}

/** Whether an agent may remember the refusal of a key that was replaced while it did not run. */
async function hasNewKey(db: Db, instance: Instance): Promise<boolean> {
  if (instance.observedGeneration === 0) return false // its first start
  const { organizationId, provider, updatedAt } = providerKeys
  const isKey = and(eq(organizationId, instance.organizationId), eq(provider, instance.modelProvider))
  const isNew = gt(updatedAt, sql`now() - make_interval(mins => ${maxCooldownMinutes})`)
  return (await db.$count(providerKeys, and(isKey, isNew))) > 0
}

/**
 * Ends the agent's current runs. Otherwise OpenClaw continues them for minutes after a stop, and is killed. A gateway
 * that cannot be asked is stopped anyway.
 */
async function endAgentRuns({ sandboxes, vault, lease, log, signal }: StepContext): Promise<void> {
  const { instance } = lease
  const { state, endpoint } = await sandboxes.observe(instance.id, signal)
  if (state !== 'running' || !endpoint) return
  const options = {
    signal: AbortSignal.any([signal, AbortSignal.timeout(endRunsTimeoutMs)]),
    timeoutMs: optionalConnectTimeoutMs,
  }
  const ending = connectGateway(endpoint, unsealToken(vault, instance), options).then((gateway) =>
    endRuns(gateway).finally(() => gateway.close()),
  )
  const ended = await ending.catch((err: unknown) => {
    signal.throwIfAborted()
    log.warn({ err }, 'the gateway could not be asked to end its runs before its stop')
    return 0
  })
  if (ended > 0) log.info({ sessions: ended }, 'ended the runs of the agent')
}

/** Freezes the gateway of an instance that sleeps. Returns false if it is to be stopped instead. */
async function freezeGateway({ sandboxes, vault, lease, log, signal }: StepContext): Promise<boolean> {
  const { instance } = lease
  const { id } = instance
  if (!sandboxes.freeze || !maySleepFrozen(instance)) return false
  const freeze = async () => (await sandboxes.freeze?.(id, signal)) === true
  const { state, endpoint } = await sandboxes.observe(id, signal)
  // Again: an earlier attempt may have ended before all of its memory was moved.
  if (state === 'frozen') return await freeze()
  if (!endpoint) return false
  try {
    const options = { signal, timeoutMs: optionalConnectTimeoutMs }
    const gateway = await connectGateway(endpoint, unsealToken(vault, instance), options)
    return await suspendFor(gateway, id, freeze).finally(() => gateway.close())
  } catch (err) {
    signal.throwIfAborted()
    log.warn({ err }, 'a gateway that sleeps could not be frozen, and is stopped')
    return false
  }
}

/** Stops the sandbox, or freezes it if its instance only sleeps. */
export const stopSandbox: Step = async (context) => {
  const { sandboxes, lease, timeouts, signal } = context
  if (await freezeGateway(context)) return done
  await endAgentRuns(context)
  await sandboxes.stop(lease.instance.id, { graceMs: timeouts.graceMs }, signal)
  if (lease.instance.relayTokenHash !== null) await lease.write({ relayTokenHash: null })
  return done
}

/** Destroys the sandbox, then deletes the credentials of its channels and skills, and the hosts that its agent requested. */
export const destroySandbox: Step = async ({ db, sandboxes, lease, signal }) => {
  const { id } = lease.instance
  await sandboxes.destroy(id, signal)
  await db.delete(channels).where(eq(channels.instanceId, id))
  await db.delete(instanceUse).where(eq(instanceUse.instanceId, id))
  await db.delete(skills).where(eq(skills.instanceId, id))
  await db.delete(egressHosts).where(eq(egressHosts.instanceId, id))
  return done
}
