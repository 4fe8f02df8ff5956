import { execFile } from 'node:child_process'
import { access, readdir, readFile, readlink } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { inject } from 'vitest'
import { configPath } from '#openclaw/inside/launch.ts'
import { gatewaysAmong, objectsOfAgent, volumeOfAgent } from './chowder-process.ts'
import { processesIn } from './run-folder.ts'

const run = promisify(execFile)

const exists = (path: string) =>
  access(path).then(
    () => true,
    () => false,
  )

/** What there is of an instance, of each the furthest; `processes` are its gateway's, however young it is. */
export type World = 'nothing' | 'sandbox' | 'configuration' | 'processes'

/** How many things of each kind there are. */
type Counts = Record<string, number>

/** An installation's sandboxes as somebody finds them who does not ask Chowder. */
export interface SandboxesSeen {
  worldOf(id: string): Promise<World>
  processesOf(id: string): Promise<number[]>
  /** Its launcher and its programs are none. */
  gatewaysOf(id: string): Promise<number[]>
  /** The gateway's configuration; empty when there is none. */
  configOf(id: string): Promise<string>
  /** What its gateway has written, all starts together; throws while there is no sandbox. */
  outputOf(id: string): Promise<string>
  /** What is there of an instance: `oneOfEach` while it has a sandbox. */
  countOf(id: string): Promise<Counts>
  oneOfEach: Counts
}

const isRoot = process.getuid?.() === 0

function onThisHost(dataDir: string): Omit<SandboxesSeen, 'worldOf'> & { isMade(id: string): Promise<boolean> } {
  const folderOf = (id: string) => join(dataDir, 'sandboxes', id)
  const namesIn = (folder: string) => readdir(join(dataDir, folder)).catch(() => [])
  /** The user ids and ports that are reserved for an instance. */
  const reserved = async (kind: string, id: string) => {
    const numbers = await namesIn(kind)
    const holders = await Promise.all(numbers.map((number) => readlink(join(dataDir, kind, number))))
    return holders.filter((holder) => holder === id).length
  }
  const processesOf = (id: string) => processesIn(folderOf(id))
  return {
    isMade: (id) => exists(join(folderOf(id), 'sandbox.json')),
    processesOf,
    gatewaysOf: async (id) => gatewaysAmong(await processesOf(id)),
    configOf: (id) => readFile(join(folderOf(id), 'home', configPath), 'utf8').catch(() => ''),
    outputOf: (id) => readFile(join(folderOf(id), 'gateway.log'), 'utf8'),
    countOf: async (id) => ({
      folders: (await namesIn('sandboxes')).filter((name) => name.includes(id)).length,
      uids: await reserved('uids', id),
      ports: await reserved('ports', id),
    }),
    // A gateway in a jail listens at the same port as the others, in a network of its own.
    oneOfEach: { folders: 1, uids: isRoot ? 1 : 0, ports: 0 },
  }
}

function inContainers(dockerHost: string): Omit<SandboxesSeen, 'worldOf'> & { isMade(id: string): Promise<boolean> } {
  const list = async (...args: string[]) =>
    (await run('docker', ['--host', dockerHost, ...args])).stdout.split('\n').filter(Boolean)
  const containersOf = (id: string) =>
    list('ps', '-a', '-q', '--no-trunc', '--filter', `label=chowder.instance=${id}`, '--filter', 'label=chowder.role=sandbox') // biome-ignore format: short
  const volumesOf = (id: string) => list('volume', 'ls', '-q', '--filter', `label=chowder.instance=${id}`)
  const processesOf = async (id: string) =>
    (await Promise.all((await containersOf(id)).map((container) => processesIn(container)))).flat()
  return {
    isMade: async (id) => (await containersOf(id)).length > 0,
    processesOf,
    gatewaysOf: async (id) => gatewaysAmong(await processesOf(id)),
    async configOf(id) {
      const [volume] = await volumesOf(id)
      if (!volume) return ''
      const [folder = ''] = await list('volume', 'inspect', '--format', '{{.Mountpoint}}', volume)
      return readFile(join(folder, 'home', configPath), 'utf8').catch(() => '')
    },
    async outputOf(id) {
      const { stdout, stderr } = await run('docker', ['--host', dockerHost, 'logs', `chowder-${id}`])
      return stdout + stderr
    },
    countOf: async (id) => ({ containers: (await containersOf(id)).length, volumes: (await volumesOf(id)).length }),
    oneOfEach: { containers: 1, volumes: 1 },
  }
}

function inPods(clusterFolder: string): Omit<SandboxesSeen, 'worldOf'> & { isMade(id: string): Promise<boolean> } {
  const find = (kind: string, id: string) => objectsOfAgent(clusterFolder, kind, id)
  const count = async (kind: string, id: string) => (await find(kind, id)).length
  const processesOf = async (id: string) =>
    (await Promise.all((await find('pods', id)).map(({ metadata }) => processesIn(`pod${metadata.uid}`)))).flat()
  return {
    isMade: async (id) => (await count('statefulsets', id)) > 0,
    processesOf,
    gatewaysOf: async (id) => gatewaysAmong(await processesOf(id)),
    async configOf(id) {
      const volume = await volumeOfAgent(clusterFolder, id)
      return volume === null ? '' : readFile(join(volume, 'home', configPath), 'utf8').catch(() => '')
    },
    outputOf: async (id) => readFile(join((await volumeOfAgent(clusterFolder, id)) ?? '', 'gateway.log'), 'utf8'),
    countOf: async (id) => ({
      statefulSets: await count('statefulsets', id),
      claims: await count('persistentvolumeclaims', id),
    }),
    oneOfEach: { statefulSets: 1, claims: 1 },
  }
}

/** Those of the Chowder with this data folder, wherever these tests have their agents. */
export function sandboxesSeen(dataDir: string): SandboxesSeen {
  const dockerHost = inject('agentDockerHost')
  const cluster = inject('agentCluster')
  const inCluster = cluster === null ? onThisHost(dataDir) : inPods(cluster)
  const seen = dockerHost === null ? inCluster : inContainers(dockerHost)
  return {
    ...seen,
    async worldOf(id) {
      if ((await seen.processesOf(id)).length > 0) return 'processes'
      if ((await seen.configOf(id)) !== '') return 'configuration'
      return (await seen.isMade(id)) ? 'sandbox' : 'nothing'
    },
  }
}
