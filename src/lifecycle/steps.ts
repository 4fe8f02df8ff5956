import { setTimeout as sleep } from 'node:timers/promises'
import { sql } from 'drizzle-orm'
import type { Db } from '../database/client.ts'
import type { Instance } from '../database/schema.ts'
import type { Lease } from '../instances/lease.ts'
import { type OpenedInstance, openInstance } from '../instances/store.ts'
import { applyConfig } from '../openclaw/apply-config.ts'
import {
  type BaseUrls,
  configPath,
  gatewayCommand,
  gatewayEnv,
  gatewayFolders,
  mergeForFile,
  renderConfig,
} from '../openclaw/config.ts'
import { connectGateway, probeHealth } from '../openclaw/gateway.ts'
import { parseOverrides } from '../openclaw/overrides.ts'
import { writeSystemPrompt } from '../openclaw/system-prompt.ts'
import type { Logger } from '../platform/log.ts'
import type { Vault } from '../platform/secrets.ts'
import type { Observation, SandboxDriver } from '../sandbox/driver.ts'
import { StepFailure } from './failures.ts'
import { isRefusedByProvider } from './provider-key.ts'

/** How patient the steps are, in ms; tests shorten them. */
export interface Patience {
  /** A gateway that starts and shows no progress is given up after this. */
  startWithoutProgressMs: number
  /** However much progress it shows, a start ends after this. */
  startMs: number
  /** A gateway that ran and does not answer is asked from inside its sandbox for this long before it is restarted. */
  hungMs: number
  /** What a gateway gets to end its turns before it is killed. */
  graceMs: number
}

export const defaultPatience: Patience = {
  startWithoutProgressMs: 120_000,
  startMs: 300_000,
  hungMs: 30_000,
  graceMs: 10_000,
}

export interface StepDeps {
  db: Db
  vault: Vault
  sandboxes: SandboxDriver
  baseUrls: BaseUrls
  clawhubUrl: string | undefined
  patience: Patience
}

/** One pass over an instance's plan. */
export interface Pass extends StepDeps {
  lease: Lease
  /** Aborted when the lease is lost, the process is to end, or the intent has changed. */
  signal: AbortSignal
  log: Logger
  /** Whether this pass started the gateway, from the configuration that it wrote. */
  started: boolean
}

/** One idempotent move: look first, act only if the world is not yet so, record what must be remembered. */
export type Step = (pass: Pass) => Promise<void>

const pollMs = 100
const probeTimeoutMs = 2000
const connectTimeoutMs = 30_000
const configMaxBytes = 4 * 1024 * 1024
const progressLines = 20

/** Enough for OpenClaw 2026.9.6, which was seen to need up to 1.15 GB; drivers that cannot limit ignore it. */
const resources = { memoryMb: 2048, cpus: 2, pids: 512 }

/** Installs the release on this host if it is not there yet. Takes as long as the network does. */
const prepareRelease: Step = ({ sandboxes, lease, log, signal }) =>
  sandboxes.prepare(lease.instance.openclawVersion, (line) => log.info(line), signal)

/** Makes the sandbox, or finds the one that bears the id; a new one only for a key that the provider takes. */
const createSandbox: Step = async (pass) => {
  const { sandboxes, lease, clawhubUrl, signal } = pass
  const { instance } = lease
  const { state } = await sandboxes.observe(instance.id, signal)
  if (state === 'running') return
  if (state === 'absent') await refuseBadKey(pass)
  await sandboxes.create(
    {
      id: instance.id,
      organizationId: instance.organizationId,
      release: instance.openclawVersion,
      command: gatewayCommand,
      env: (inside) => gatewayEnv(inside, { clawhubUrl }),
      resources,
      labels: { organization: instance.organizationId },
    },
    signal,
  )
}

async function refuseBadKey({ db, vault, lease, baseUrls, signal }: Pass): Promise<void> {
  const provider = lease.instance.modelProvider
  const { providerKey } = await openInstance(db, vault, lease.instance)
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

const render = (
  pass: Pass,
  { token, providerKey }: OpenedInstance,
  port: number,
  overrides: Record<string, unknown>,
) => {
  const { openclawVersion: release, modelProvider: provider } = pass.lease.instance
  return renderConfig({ release, provider, providerKey, baseUrl: pass.baseUrls[provider], token, port, overrides })
}

/** Writes the gateway's configuration while it is down; a live gateway's file is never touched. */
const writeConfig: Step = async (pass) => {
  const { db, vault, sandboxes, lease, signal } = pass
  const { state, inside } = await sandboxes.observe(lease.instance.id, signal)
  if (state === 'running' || !inside) return
  const opened = await openInstance(db, vault, lease.instance)
  if (opened.providerKey === null) throw noKey(lease.instance.modelProvider)
  const { tree, systemPrompt } = parseOverrides(opened.openclawConfig ?? {})
  const files = sandboxes.files(lease.instance.id)
  for (const folder of gatewayFolders) await files.write(`${folder}/.keep`, Buffer.alloc(0), { mode: 0o600 }, signal)
  const existing = await files.read(configPath, { maxBytes: configMaxBytes }, signal)
  const wanted = mergeForFile(render(pass, opened, inside.port, tree), parseJson(existing))
  await files.write(configPath, Buffer.from(`${JSON.stringify(wanted, null, 2)}\n`), { mode: 0o600 }, signal)
  await writeSystemPrompt(files, systemPrompt, signal)
}

/** The tenant may have written anything there; what cannot be read has nothing worth keeping. */
function parseJson(content: Buffer | null): Record<string, unknown> | null {
  try {
    return content ? JSON.parse(content.toString()) : null
  } catch {
    return null
  }
}

/** Starts the gateway if it does not run. The row stops being ready first, so that nobody is sent to a dead one. */
const startGateway: Step = async (pass) => {
  const { sandboxes, lease, signal } = pass
  const seen = await sandboxes.observe(lease.instance.id, signal)
  if (seen.state === 'running') return
  await forgetReadiness(lease, seen)
  await sandboxes.start(lease.instance.id, signal)
  pass.started = true
}

async function forgetReadiness(lease: Lease, { exit }: Observation): Promise<void> {
  if (lease.instance.readyAt === null) return
  const how = exit?.oom
    ? 'for want of memory'
    : exit?.code == null
      ? 'by itself'
      : `by itself with exit code ${exit.code}`
  await lease.write({ readyAt: null, errorMessage: `The gateway ended ${how}.`, updatedAt: sql`now()` })
}

/**
 * Waits until the gateway is ready. One that ran before and does not answer any more is asked from inside its sandbox,
 * and restarted only when that fails too: a broken way to it is no reason to end an agent.
 */
const checkHealth: Step = async (pass) => {
  const { lease, sandboxes, patience, signal } = pass
  if (lease.instance.readyAt && (await isAnswering(pass, await sandboxes.observe(lease.instance.id, signal)))) return
  if (lease.instance.readyAt && !(await isHung(pass))) return
  if (lease.instance.readyAt) {
    pass.log.warn('the gateway hangs and is restarted')
    await sandboxes.stop(lease.instance.id, { graceMs: patience.graceMs }, signal)
    await writeConfig(pass)
    await startGateway(pass)
  }
  await waitUntilReady(pass)
}

const isAnswering = async ({ signal }: Pass, { endpoint }: Observation, path: '/healthz' | '/startupz' = '/healthz') =>
  endpoint !== null && probeHealth(endpoint, path, { timeoutMs: probeTimeoutMs, signal })

/** Not `/readyz`: that one is no as long as any chat channel fails, and a wrong bot token is no reason to end an agent. */
async function waitUntilReady(pass: Pass): Promise<void> {
  const { lease, sandboxes, patience, signal } = pass
  const { id } = lease.instance
  const startedAt = performance.now()
  let progressAt = startedAt
  let output = ''
  for (let round = 0; ; round += 1) {
    const seen = await sandboxes.observe(id, signal)
    if (seen.state !== 'running') throw await endedEarly(pass, seen)
    if (await isAnswering(pass, seen, '/startupz')) return
    if (round % 10 === 0) {
      const latest = await sandboxes.logs(id, progressLines)
      if (latest !== output) progressAt = performance.now()
      output = latest
    }
    const now = performance.now()
    if (now - progressAt > patience.startWithoutProgressMs || now - startedAt > patience.startMs) {
      throw new StepFailure(`The gateway was not ready after ${Math.round((now - startedAt) / 1000)} s.`)
    }
    await sleep(pollMs, undefined, { signal })
  }
}

/** OpenClaw's own code for a configuration that it cannot start with; the driver saw to it that the folder was free. */
const configurationExit = 78

async function endedEarly(pass: Pass, { exit }: Observation): Promise<StepFailure> {
  const code = exit?.code ?? null
  const why = exit?.oom ? 'it ran out of memory' : code === null ? 'it was ended' : `exit code ${code}`
  const words = await lastWords(pass)
  return new StepFailure(`The gateway ended while it started (${why})${words && `: ${words}`}`, {
    final: code === configurationExit,
  })
}

const quotedLines = 6
const quotedCharacters = 600

/** What the gateway said last, without the secrets that it was given. */
async function lastWords({ db, vault, lease, sandboxes }: Pass): Promise<string> {
  const { token, providerKey } = await openInstance(db, vault, lease.instance)
  let words = (await sandboxes.logs(lease.instance.id, quotedLines)).trim()
  for (const secret of [token, providerKey]) if (secret) words = words.replaceAll(secret, '***')
  return words.slice(-quotedCharacters)
}

/** Asks the gateway from inside its sandbox until it answers, there or here, or the patience for it is over. */
async function isHung(pass: Pass): Promise<boolean> {
  const { lease, sandboxes, patience, signal } = pass
  const { id } = lease.instance
  const deadline = performance.now() + patience.hungMs
  while (performance.now() < deadline) {
    const seen = await sandboxes.observe(id, signal)
    if (seen.state !== 'running') return true
    if (await isAnswering(pass, seen)) return false
    const { node, port } = seen.inside ?? { node: 'node', port: 0 }
    const ask = `fetch('http://127.0.0.1:${port}/healthz',{signal:AbortSignal.timeout(5000)}).then((a)=>process.exit(a.ok?0:1),()=>process.exit(1))`
    const { exitCode } = await sandboxes.exec(id, [node, '-e', ask], { timeoutMs: 10_000 }, signal)
    if (exitCode === 0) return false
    await sleep(1000, undefined, { signal })
  }
  return true
}

/** Gives a gateway that was running already the stored configuration, without a restart. */
const patchConfig: Step = async (pass) => {
  const { db, vault, sandboxes, lease, started, signal } = pass
  if (started) return
  const { endpoint, inside } = await sandboxes.observe(lease.instance.id, signal)
  if (!endpoint || !inside) throw new StepFailure('The gateway ended while its configuration was changed.')
  const opened = await openInstance(db, vault, lease.instance)
  const { tree, systemPrompt } = parseOverrides(opened.openclawConfig ?? {})
  const gateway = await connectGateway(endpoint, opened.token, { signal, timeoutMs: connectTimeoutMs })
  try {
    const { restarts } = await applyConfig(gateway, render(pass, opened, inside.port, tree), signal)
    if (restarts) await waitUntilReady(pass)
  } finally {
    gateway.close()
  }
  await writeSystemPrompt(sandboxes.files(lease.instance.id), systemPrompt, signal)
}

const stopSandbox: Step = ({ sandboxes, lease, patience, signal }) =>
  sandboxes.stop(lease.instance.id, { graceMs: patience.graceMs }, signal)

const destroySandbox: Step = ({ sandboxes, lease, signal }) => sandboxes.destroy(lease.instance.id, signal)

/** What a call of the platform, files or the gateway's RPC may take together; each is far quicker when all is well. */
const usualLimitMs = 60_000
/** The install's own limit, and a little. */
const prepareLimitMs = 16 * 60_000
/** A start's own limit, after a look at a gateway that hangs, its end, and a little. */
const healthLimitMs = 7 * 60_000

/** The whole life of an instance: for each intent, the steps that make it true, and how long each may take. */
export const plans: Record<Instance['desiredState'], readonly { step: Step; limitMs: number }[]> = {
  running: [
    { step: prepareRelease, limitMs: prepareLimitMs },
    { step: createSandbox, limitMs: usualLimitMs },
    { step: writeConfig, limitMs: usualLimitMs },
    { step: startGateway, limitMs: usualLimitMs },
    { step: checkHealth, limitMs: healthLimitMs },
    { step: patchConfig, limitMs: usualLimitMs },
  ],
  stopped: [{ step: stopSandbox, limitMs: usualLimitMs }],
  terminated: [{ step: destroySandbox, limitMs: usualLimitMs }],
}
