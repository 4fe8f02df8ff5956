import { execFile } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { chmod, copyFile, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { inject } from 'vitest'
import { dockerSettings } from '#composition/docker-settings.ts'
import { relayPath } from '#instances/gateway/relay-url.ts'
import { releaseImage } from '#openclaw/release/release-image.ts'
import { defaultRelease, releaseFolder } from '#openclaw/releases.ts'
import { imageBuild, type ReleaseSource } from '#sandbox/container/image.ts'
import { createDockerDriver, type DockerDriverOptions } from '#sandbox/docker/driver.ts'
import type { SandboxDriver } from '#sandbox/driver.ts'
import { loadConfig } from '#settings/config.ts'
import { dockerEnv, forAgents } from './agent-sandboxes.ts'
import { LocalHost } from './local-host.ts'

const run = promisify(execFile)

const stub = fileURLToPath(new URL('./stub-openclaw.mjs', import.meta.url))
const buildMs = 5 * 60_000

/** How the stub behaves: see there. */
export interface Behaviour {
  readyAfterMs?: number
  progressEveryMs?: number
  exitAfterMs?: number
  exitCode?: number
}

/** The record of a gateway's own connection to the outside, as a chat channel has one. */
export interface Channel {
  connections: number
  isOpen: boolean
  heardAt: number
  longestSilenceMs: number
}

export interface StubProvider {
  /** Where agents reach it. */
  url: string
  /** How the gateways behave that are started from now on. */
  behave(behaviour: Behaviour): void
  /** By the gateway's token. */
  channels: ReadonlyMap<string, Channel>
  close(): Promise<void>
}

/** The stub's stand-in of a model provider, and of the relay. */
export async function startStubProvider(): Promise<StubProvider> {
  let behaviour: Behaviour = {}
  const channels = new Map<string, Channel>()
  const server = createServer((request, response) => {
    // Gateways take it for the relay, and Chowder for a provider.
    const path = request.url?.replace(relayPath('anthropic'), '')
    if (path !== '/channel') {
      response.statusCode = path === '/behaviour' ? 200 : 503 // which is no verdict on a key
      response.end(JSON.stringify(behaviour))
      return
    }
    const token = String(request.headers.authorization)
    const connections = (channels.get(token)?.connections ?? 0) + 1
    const channel: Channel = { connections, isOpen: true, heardAt: performance.now(), longestSilenceMs: 0 }
    channels.set(token, channel)
    request.on('data', () => {
      const now = performance.now()
      channel.longestSilenceMs = Math.max(channel.longestSilenceMs, now - channel.heardAt)
      channel.heardAt = now
    })
    request.on('error', () => {})
    request.on('close', () => {
      channel.isOpen = false
    })
  })
  server.requestTimeout = 0
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  if (typeof address !== 'object' || !address) throw new Error('no port')
  return {
    url: await forAgents(`http://127.0.0.1:${address.port}`),
    behave: (next) => {
      behaviour = next
    },
    channels,
    async close() {
      server.close()
      server.closeAllConnections()
    },
  }
}

/** Puts the stub where a folder has OpenClaw. */
async function putStub(folder: string): Promise<void> {
  const place = join(folder, 'node_modules/openclaw/openclaw.mjs')
  await mkdir(dirname(place), { recursive: true })
  await copyFile(stub, place)
  await chmod(place, 0o644)
}

/** The default release with the stub in OpenClaw's place. */
async function stubSource(): Promise<ReleaseSource & AsyncDisposable> {
  const root = await mkdtemp(join(tmpdir(), 'chowder-stub-release-'))
  const place = releaseFolder('', defaultRelease)
  await putStub(join(root, place))
  const { folder } = releaseImage(defaultRelease)
  return {
    root,
    files: [join(place, 'node_modules/openclaw/openclaw.mjs')],
    install: 'cp -r releases',
    folder,
    [Symbol.asyncDispose]: () => rm(root, { recursive: true }),
  }
}

async function containerOptions(dockerHost: string): Promise<DockerDriverOptions> {
  const settings = await dockerSettings(loadConfig(dockerEnv(dockerHost)))
  return { ...settings, installation: randomUUID() }
}

async function openInContainers(dockerHost: string) {
  await using source = await stubSource()
  const driver = createDockerDriver({ ...(await containerOptions(dockerHost)), releaseSource: () => source })
  await driver.prepare(defaultRelease, () => {}, AbortSignal.timeout(buildMs))
  const close = async () => {
    const signal = AbortSignal.timeout(60_000)
    for await (const { id } of driver.list(signal)) await driver.destroy(id, signal)
  }
  const root = (await run('docker', ['--host', dockerHost, 'info', '--format', '{{.DockerRootDir}}'])).stdout.trim()
  const folder = join(root, 'volumes')
  return { driver, folder, folderOf: (id: string) => join(folder, `chowder-${id}`, '_data'), close }
}

async function openOnThisHost() {
  const host = await LocalHost.make()
  await putStub(join(host.dataDir, 'releases'))
  const folder = join(host.dataDir, 'sandboxes')
  return { driver: host.driver, folder, folderOf: (id: string) => join(folder, id), close: () => host.remove() }
}

export interface StubSandboxes {
  driver: SandboxDriver
  /** The folder on this host that has all that agents keep. */
  folder: string
  /** The state of one agent. */
  folderOf(id: string): string
  close(): Promise<void>
}

/** Real sandboxes wherever these tests have their agents, in which OpenClaw is the stub. */
export function openStubSandboxes(): Promise<StubSandboxes> {
  const dockerHost = inject('agentDockerHost') ?? null
  return dockerHost === null ? openOnThisHost() : openInContainers(dockerHost)
}

/** Builds the image by whose name Chowder knows the default release with these certificates, with the stub in it. */
async function buildInPlaceOfOpenClaw(dockerHost: string, extraCaFile: string): Promise<void> {
  await using source = await stubSource()
  const options = { ...(await containerOptions(dockerHost)), extraCaFile, releaseSource: () => source }
  await createDockerDriver(options).prepare(defaultRelease, () => {}, AbortSignal.timeout(buildMs))
  const nameOf = async (from: ReleaseSource) =>
    (await imageBuild(defaultRelease, from, { ...options, network: options.buildNetwork })).name
  const names = [await nameOf(source), await nameOf(releaseImage(defaultRelease))]
  await run('docker', ['--host', dockerHost, 'tag', ...names])
}

/**
 * Has the Chowder that will be started on a data folder find the stub in the place of the default release, wherever
 * these tests have their agents; answers the settings that this takes.
 */
export async function installStub(dataDir: string): Promise<Record<string, string>> {
  const dockerHost = inject('agentDockerHost')
  if (dockerHost === null) {
    await putStub(releaseFolder(dataDir, defaultRelease))
    return {}
  }
  const env = dockerEnv(dockerHost)
  // Other certificates are another image: that of OpenClaw itself stays what it is.
  const extraCaFile = join(dataDir, 'stub-ca.pem')
  const trusted = env.DOCKER_EXTRA_CA_FILE ? await readFile(env.DOCKER_EXTRA_CA_FILE, 'utf8') : ''
  await writeFile(extraCaFile, `${trusted}\n# for the stub\n`)
  await buildInPlaceOfOpenClaw(dockerHost, extraCaFile)
  return { ...env, DOCKER_EXTRA_CA_FILE: extraCaFile }
}
