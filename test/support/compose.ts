import { execFile } from 'node:child_process'
import { cp, mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { dockerFolders } from './canary/installation.ts'
import { requireNoSecrets } from './canary/search.ts'
import { noteSecret } from './canary/secrets.ts'
import type { TestDockerd } from './dockerd.ts'
import { extract } from './previous-version.ts'

const run = promisify(execFile)
const root = join(import.meta.dirname, '../..')
const checkout = [
  '.dockerignore',
  'Dockerfile',
  'deploy',
  'docker-compose.yml',
  'docs',
  'migrations',
  'openapi.json',
  'package-lock.json',
  'package.json',
  'releases',
  'src',
]
const standIns = ['postgres:17', 'redis:8', 'caddy:2']

type Inspected = { NetworkSettings: { Networks: Record<string, { IPAddress: string } | undefined> } }

/** A checkout of Chowder on a machine with Docker, as an operator has it. */
export interface ComposeCheckout {
  folder: string
  /** Runs `docker compose` in it and returns its output. */
  compose(...args: string[]): Promise<string>
  /** Runs commands of an operator in it, and returns their output. */
  shell(commands: string): Promise<string>
  /** Replaces the files of the folder by those of this version. */
  replace(): Promise<void>
  /** Replaces the running services by those of the folder. */
  upgrade(): Promise<void>
  /** Throws an error when a secret stands in the clear anywhere in it, in its agents, or in what dockerd has of them. */
  search(): Promise<void>
  /** The ids of a service's containers. */
  containers(service: string): Promise<string[]>
  /** Removes everything that was made, with the agents. */
  close(): Promise<void>
}

/**
 * Makes the checkout. Without a registry Debian's packages of the same programs take the place of the images that
 * docker-compose.yml names. Chowder's own image does not exist yet. Settings are passed in the environment. With a
 * commit it is a checkout of that one.
 */
export async function openComposeCheckout(
  { host, docker }: TestDockerd,
  settings: Record<string, string>,
  commit?: string,
): Promise<ComposeCheckout> {
  for (const image of standIns) {
    const target = image.split(':')[0] ?? ''
    const context = join(import.meta.dirname, 'compose-images')
    await docker('build', '-q', '--network', 'host', '--target', target, '-t', image, context)
  }
  await docker('image', 'rm', '-f', 'chowder:local').catch(() => {}) // there was none
  const folder = await mkdtemp(join(tmpdir(), 'chowder-checkout-'))
  const replace = async () => {
    for (const path of checkout) {
      await rm(join(folder, path), { recursive: true, force: true })
      await cp(join(root, path), join(folder, path), { recursive: true })
    }
  }
  await (commit === undefined ? replace() : extract(commit, folder, checkout))
  const env = {
    PATH: '/usr/bin:/bin',
    HOME: folder,
    DOCKER_HOST: host,
    DOCKER_SOCKET: host.replace('unix://', ''),
    DOCKER_BUILD_NETWORK: 'host',
    ...settings,
  }
  const options = { cwd: folder, env, maxBuffer: 64 * 1024 * 1024 }
  const compose = async (...args: string[]) => (await run('docker', ['compose', ...args], options)).stdout
  const lines = (text: string) => text.split('\n').filter(Boolean)
  const containers = async (service: string) => lines(await compose('ps', '-q', service))
  /** The addresses of a service's containers in the network that services alone have, which this host reaches. */
  const addresses = async (service: string): Promise<string[]> => {
    const found = JSON.parse(await docker('inspect', ...(await containers(service))))
    return found.map(({ NetworkSettings }: Inspected) => NetworkSettings.Networks.chowder_data?.IPAddress ?? '')
  }

  async function search(): Promise<void> {
    const folders = await dockerFolders(host)
    const secretOf = async (volume: string, file: string) =>
      (await readFile(join(folders[0] ?? '', `chowder_${volume}-secrets`, '_data', file), 'utf8')).trim()
    noteSecret('secret key', await secretOf('chowder', 'secret-key'))
    for (const service of ['postgres', 'redis']) noteSecret('password', await secretOf(service, 'password'))
    const [postgres] = await addresses('postgres')
    const [redis] = await addresses('redis')
    const chowder = (await Promise.all(['api', 'worker', 'relay'].map(addresses))).flat()
    const metrics = chowder.map(async (address) => (await fetch(`http://${address}:9464/metrics`)).text())
    await requireNoSecrets({
      folders: [...folders, folder],
      databases: [
        { host: postgres, user: 'chowder', database: 'chowder', password: await secretOf('postgres', 'password') },
      ],
      redisUrl: `redis://:${await secretOf('redis', 'password')}@${redis}:6379`,
      texts: { metrics: (await Promise.all(metrics)).join('\n') },
    })
  }
  return {
    folder,
    compose,
    shell: async (commands) => (await run('bash', ['-euc', commands], options)).stdout,
    replace,
    upgrade: async () => {
      await run('deploy/compose/upgrade.sh', options)
    },
    search,
    containers,
    async close() {
      await compose('kill').catch(() => {}) // nothing ran
      for (const id of lines(await docker('ps', '-aq', '--filter', 'label=chowder.instance')))
        await docker('rm', '-f', id)
      await compose('down', '--volumes', '--timeout', '5')
      await docker('volume', 'prune', '-af')
      await rm(folder, { recursive: true })
    },
  }
}
