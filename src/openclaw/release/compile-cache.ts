import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdir, mkdtempDisposable, readdir, symlink, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import type { ModelProvider } from '#database/schema.ts'
import { InstallError } from '#errors/install-error.ts'
import { renderConfig } from '#openclaw/config/config.ts'
import type { GatewaySecrets } from '#openclaw/gateway/gateway-secrets.ts'
import { probeHealth } from '#openclaw/gateway/health.ts'
import {
  compileCacheFolder,
  configPath,
  gatewayCommand,
  gatewayEnv,
  gatewayFolders,
  secretsPath,
} from '#openclaw/inside/launch.ts'
import { mergePatch } from '#openclaw/json.ts'
import { defaultModel } from '#openclaw/models/models.ts'
import { gatewayProviders } from '#openclaw/models/providers.ts'
import { freePort } from '#platform/free-port.ts'
import { poll } from '#platform/poll.ts'
import type { Progress } from '#sandbox/driver.ts'
import { saveFirstState } from './first-state.ts'
import { makeFolderOnce } from './make-once.ts'
import { runProgram } from './run-program.ts'

const timeoutMs = 3 * 60_000
const pollMs = 100
const probeTimeoutMs = 2000
const providers = Object.keys(gatewayProviders) as ModelProvider[]

const execute = promisify(execFile)

let cachedName: Promise<string> | undefined

/**
 * The name of Node.js's compile cache, without the user id. It depends on the version of Node.js and the features of
 * the processor. Another process computes it, because it also depends on V8's flags and this process may have some.
 */
function cacheName(): Promise<string> {
  const expression =
    "[process.version, process.arch, require('node:v8').cachedDataVersionTag().toString(16).padStart(8, '0')].join('-')"
  cachedName ??= execute(process.execPath, ['-p', expression], { env: {} }).then(({ stdout }) => stdout.trim())
  return cachedName
}

/** Links a compile cache into a folder, under the name that Node.js looks up when it runs as that user. */
async function link(cache: string, folder: string, uid: number): Promise<void> {
  await symlink(cache, join(folder, `${await cacheName()}-${uid}`)).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'EEXIST') throw error
  })
}

/**
 * Makes the compile cache of a release on this host readable for the gateways of a user. A failure is ignored: without
 * the link a gateway only starts more slowly.
 */
export async function linkCompileCache(releaseFolder: string, uid: number): Promise<void> {
  await link(await cacheName(), compileCacheFolder(releaseFolder), uid).catch(() => {})
}

/** A provider that refuses every turn. After a refusal, a gateway has loaded all code that a turn needs. */
async function startRefusingProvider(): Promise<{ url: string } & Disposable> {
  const refusal = JSON.stringify({ error: { type: 'invalid_request_error', message: 'refused on purpose' } })
  const server = createServer((request, response) => {
    request.resume()
    response.writeHead(400, { 'content-type': 'application/json' }).end(refusal)
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const close = () => {
    server.close()
    server.closeAllConnections()
  }
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, [Symbol.dispose]: close }
}

/** The configuration of an agent that has every provider. */
function warmUpConfig(release: string, baseUrl: string, secretsFile: string, port: number) {
  const common = { release, baseUrl, secretsFile, port, channels: [], skills: {} }
  const plugins = { allow: providers.map((provider) => gatewayProviders[provider].id) }
  return providers
    .map((provider) => renderConfig({ ...common, provider, overrides: { plugins } }) as unknown)
    .reduce(mergePatch)
}

/** Waits until the gateway is ready, then runs a turn with each provider, which refuses it. */
async function runTurns(release: string, port: number, token: string, signal: AbortSignal): Promise<void> {
  const endpoint = { kind: 'tcp', host: '127.0.0.1', port } as const
  const isReady = () => probeHealth(endpoint, '/startupz', { timeoutMs: probeTimeoutMs, signal })
  await poll(isReady, { pauseMs: pollMs, timeoutMs, signal })
  for (const provider of providers) {
    const model = `${gatewayProviders[provider].id}/${defaultModel(release, provider)}`
    const answer = await fetch(`http://127.0.0.1:${port}/v1/responses`, {
      method: 'POST',
      headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json', 'x-openclaw-model': model },
      body: JSON.stringify({ model: 'openclaw', input: 'hello', user: provider }),
      signal,
    })
    await answer.arrayBuffer()
  }
}

/**
 * Starts the gateway of an installed release in a temporary folder, runs a turn for each provider, and stops it. When
 * the gateway exits, Node.js writes the compiled code to `cache`. `onEnd` gets the gateway's state folder.
 */
async function warmUp(
  release: string,
  releaseFolder: string,
  cache: string,
  onEnd: (stateFolder: string) => void,
  signal: AbortSignal,
): Promise<void> {
  await using folder = await mkdtempDisposable(join(tmpdir(), 'chowder-warm-up-'))
  const home = folder.path
  const links = join(home, 'cache')
  using provider = await startRefusingProvider()
  const paths = { node: process.execPath, release: releaseFolder, home, port: await freePort() }
  const token = randomBytes(32).toString('hex')
  for (const path of [links, ...gatewayFolders.map((name) => join(home, name))]) await mkdir(path, { recursive: true })
  await link(cache, links, process.getuid?.() ?? 0)
  const secrets: GatewaySecrets = { gatewayToken: token, relayToken: 'none' }
  const config = warmUpConfig(release, provider.url, join(home, secretsPath), paths.port)
  await writeFile(join(home, secretsPath), JSON.stringify(secrets), { mode: 0o600 })
  await writeFile(join(home, configPath), JSON.stringify(config), { mode: 0o600 })

  const [command = '', ...args] = gatewayCommand(paths)
  const stop = new AbortController()
  const env = { ...gatewayEnv(paths), NODE_COMPILE_CACHE: links }
  const gateway = runProgram(command, args, signal, { cwd: home, env, stop: stop.signal })
  const endedEarly = gateway.then(() => Promise.reject(new Error('the gateway ended before it was ready')))
  try {
    await Promise.race([endedEarly, runTurns(release, paths.port, token, AbortSignal.any([signal, stop.signal]))])
  } catch (error) {
    stop.abort()
    await gateway.catch(() => {})
    throw error
  }
  stop.abort()
  await gateway
  if ((await readdir(cache)).length === 0) throw new Error('the gateway wrote no compile cache')
  onEnd(join(home, 'state'))
}

/** Release folders without a cache after a failed attempt. An attempt is slow, so a process makes only one. */
const failed = new Set<string>()

/**
 * Makes the compile cache of an installed release on this host unless it exists. It holds V8's code for all modules
 * that a gateway and its first turn load, and saves a quarter of the CPU time of a start. With it is the first state of
 * new agents, see `saveFirstState`, which saves a quarter of the CPU time of their first start. Agents share both and
 * must not be able to write them: each agent would run code that another one has written. In a container they are in a
 * read-only layer. When Chowder runs as root, its agents are other users. Otherwise its agents are the same user and
 * can change the mode of these files, as of the release itself: those agents are not isolated from each other anyway.
 *
 * If one of them cannot be made, `progress` gets the reason and gateways start without it. Throws the signal's reason.
 * Takes about as long as a start of a gateway, at most three minutes.
 */
export async function makeCompileCache(options: {
  release: string
  releaseFolder: string
  title: string
  progress: Progress
  signal: AbortSignal
}): Promise<void> {
  const { release, releaseFolder, title, progress, signal } = options
  if (failed.has(releaseFolder)) return
  try {
    await makeFolderOnce({
      folder: join(compileCacheFolder(releaseFolder), await cacheName()),
      title: `the compile cache of ${title}`,
      done: 'made',
      timeoutMs,
      async fill(cache, until) {
        progress(`preparing the compile cache of ${title}`, true)
        const onEnd = (stateFolder: string) => {
          try {
            saveFirstState(stateFolder, cache)
          } catch (error) {
            progress(`${title} left no first state: ${(error as Error).message}; new agents start more slowly`)
          }
        }
        await warmUp(release, releaseFolder, cache, onEnd, until)
      },
      progress,
      signal,
    })
    if (process.getuid) await linkCompileCache(releaseFolder, process.getuid())
  } catch (error) {
    signal.throwIfAborted()
    failed.add(releaseFolder)
    const { message } = error as Error
    const unexplained = error instanceof InstallError && !error.isExplained ? `: ${error.output}` : ''
    progress(`${message.replace(/\.$/, '')}${unexplained}; agents start without it`)
  }
}
