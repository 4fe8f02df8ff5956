import { setTimeout as sleep } from 'node:timers/promises'
import { dockerSettings } from '#composition/docker-settings.ts'
import { defaultRelease } from '#openclaw/releases.ts'
import { StartupError } from '#platform/startup-error.ts'
import { createDockerClient, type DockerClient } from '#sandbox/docker/docker-client.ts'
import { createImages } from '#sandbox/docker/images.ts'
import { loadConfig } from '#settings/config.ts'
import { startChowder } from '../demo/chowder-process.ts'
import { createAgent, type Hand, inTurn, measureTogether, secondsOf, until, untilAgentIs } from './agents.ts'
import {
  exists,
  imageSize,
  type Recipe,
  recipeOf,
  removeByHand,
  removeNetwork,
  restartByHand,
  startByHand,
} from './container.ts'
import { type Fact, type Figure, fact } from './figures.ts'
import { residentMb } from './process.ts'
import { createSetup, type Undo, undoAll } from './setup.ts'
import { connect, type Tenant } from './tenant.ts'

const network = 'chowder-agents'
const rounds = 3
const idleMs = 30_000
/** Only of a release that has no image yet. */
const buildTimeoutMs = 15 * 60_000
/** Of one among many, too. */
const startTimeoutMs = 10 * 60_000
const stopTimeoutMs = 60_000
const baseImage = 'node:24-slim'
/** As docker-compose.yml names it. */
const controlPlaneImage = 'chowder:local'

type Report = (text: string) => void

/** Throws an Error that names the missing requirement of this machine. */
async function openDockerd() {
  const { DOCKER_HOST, DOCKER_BUILD_NETWORK, DOCKER_EXTRA_CA_FILE } = process.env
  if (!DOCKER_HOST)
    throw new StartupError('--docker needs a dockerd: set DOCKER_HOST to where it listens, unix:///path of its socket.')
  const env = {
    SANDBOX_DRIVER: 'docker',
    DOCKER_HOST,
    ...(DOCKER_BUILD_NETWORK && { DOCKER_BUILD_NETWORK }),
    ...(DOCKER_EXTRA_CA_FILE && { DOCKER_EXTRA_CA_FILE }),
  }
  const { dockerd, buildNetwork, extraCaFile, nodeImage, releaseSource } = await dockerSettings(loadConfig(env))
  const client = createDockerClient(dockerd)
  await client
    .call(AbortSignal.timeout(stopTimeoutMs), (docker) => docker.ping())
    .catch((cause) => {
      throw new StartupError(
        `no dockerd answers at DOCKER_HOST, ${DOCKER_HOST}: start one, or set it to where one listens.`,
        {
          cause,
        },
      )
    })
  return { env, client, images: createImages(client, releaseSource, { network: buildNetwork, extraCaFile, nodeImage }) }
}

async function deleteAgent(client: DockerClient, tenant: Tenant, id: string): Promise<void> {
  await tenant.call('DELETE', `/v1/instances/${id}`)
  await until('deleted', stopTimeoutMs, async () => !(await exists(client, id)))
}

/** From a create to a running agent, one at a time, beside the same container and gateway by hand. */
async function measureCreates(
  client: DockerClient,
  tenant: Tenant,
  report: Report,
): Promise<{ figure: Figure; recipe: Recipe }> {
  report('a first agent, which does not count')
  const first = await createAgent(tenant, startTimeoutMs)
  let recipe = await recipeOf(client, first)
  await deleteAgent(client, tenant, first)
  const byChowder = async () => {
    let id = ''
    const seconds = await secondsOf(async () => {
      id = await createAgent(tenant, startTimeoutMs)
    })
    recipe = await recipeOf(client, id)
    await deleteAgent(client, tenant, id)
    return seconds
  }
  const byHand = async (round: number) => {
    const seconds = await secondsOf(() => startByHand(client, recipe, `bench-${round}`, startTimeoutMs))
    await removeByHand(client, `bench-${round}`)
    return seconds
  }
  return { figure: await inTurn('create to running', { atMost: 1.15 }, rounds, report, byChowder, byHand), recipe }
}

/** From asking a running agent to stop, over stopped, to running again, beside the same with a container by hand. */
async function measureRestarts(client: DockerClient, tenant: Tenant, recipe: Recipe, report: Report): Promise<Figure> {
  report('an agent by Chowder and one by hand, to be stopped and started')
  const id = await createAgent(tenant, startTimeoutMs)
  const name = 'bench-restarted'
  await startByHand(client, recipe, name, startTimeoutMs)
  const byChowder = () =>
    secondsOf(async () => {
      await tenant.call('POST', `/v1/instances/${id}/stop`)
      await untilAgentIs(tenant, id, 'stopped', stopTimeoutMs)
      await tenant.call('POST', `/v1/instances/${id}/start`)
      await untilAgentIs(tenant, id, 'running', startTimeoutMs)
    })
  const byHand = () => secondsOf(() => restartByHand(client, name, startTimeoutMs))
  const restarts = await inTurn('stop to running', { atMost: 1.15 }, rounds, report, byChowder, byHand)
  await removeByHand(client, name)
  await deleteAgent(client, tenant, id)
  return restarts
}

const sizes = (what: string, { all, own }: { all: number; own: number }): Fact[] => [
  fact(`${what}, in all`, all / 1e6, 'MB'),
  fact(`${what}, beyond ${baseImage}`, own / 1e6, 'MB'),
]

/**
 * Agents in containers beside the same containers by hand, the memory of the control plane's processes, and the size of
 * its images, on the dockerd of DOCKER_HOST. Throws an Error that says what is missing.
 */
export async function measureDocker(report: Report): Promise<(Fact | Figure)[]> {
  const undo: Undo = []
  try {
    const { env, client, images } = await openDockerd()
    await images.make(defaultRelease, report, AbortSignal.timeout(buildTimeoutMs))
    report('starting PostgreSQL, an API and a worker')
    // The provider that no key is asked of: nothing listens there.
    const { chowder } = await createSetup(undo, { ...env, ANTHROPIC_BASE_URL: 'http://127.0.0.1:9' })
    undo.push(() => removeNetwork(client, network))
    const api = await startChowder({ ...chowder, role: 'api' })
    undo.push(() => api.stop('SIGTERM'))
    const worker = await startChowder({ ...chowder, role: 'worker' })
    undo.push(() => worker.stop('SIGTERM'))
    report(`both idle for ${idleMs / 1000} s`)
    await sleep(idleMs)
    const facts = [
      fact('memory of a worker, idle', await residentMb(worker.pid), 'MB'),
      fact('memory of an API, idle', await residentMb(api.pid), 'MB'),
    ]

    const tenant = await connect(api.url)
    const { figure: creates, recipe } = await measureCreates(client, tenant, report)
    const restarts = await measureRestarts(client, tenant, recipe, report)
    const hand: Hand = {
      start: (name, { timeoutMs, ended }) => startByHand(client, recipe, name, timeoutMs, ended),
      remove: (name) => removeByHand(client, name),
      deleteAgent: (id) => deleteAgent(client, tenant, id),
    }
    const all = await measureTogether(tenant, hand, report)
    facts.push(fact('memory of a worker, after them', await residentMb(worker.pid), 'MB'))

    const agent = await imageSize(client, await images.nameOf(defaultRelease), baseImage)
    if (agent) facts.push(...sizes('image of an agent', agent))
    const own = await imageSize(client, controlPlaneImage, baseImage)
    if (own) facts.push(...sizes('image of the control plane', own))
    else
      report(`there is no image ${controlPlaneImage}, so its size is left out: docker build -t ${controlPlaneImage} .`)
    return [creates, restarts, ...all, ...facts]
  } finally {
    await undoAll(undo)
  }
}
