import { join } from 'node:path'
import { StartupError } from '#platform/startup-error.ts'
import { startChowder } from '../demo/chowder-process.ts'
import { createAgent, type Hand, inTurn, measureTogether, secondsOf, until } from './agents.ts'
import type { Fact, Figure } from './figures.ts'
import { createPods } from './pod.ts'
import { createSetup, type Undo, undoAll } from './setup.ts'
import { connect } from './tenant.ts'

const rounds = 3
/** Of one among many, too. */
const startTimeoutMs = 10 * 60_000
const stopTimeoutMs = 2 * 60_000
/** The settings that lead Chowder to the cluster and to the images of agents, and agents to the relay of this machine. */
const needed = ['KUBECONFIG', 'KUBERNETES_NAMESPACE', 'KUBERNETES_IMAGE', 'RELAY_URL'] as const

/** The settings of a Chowder beside the cluster. Throws a StartupError that names the missing ones. */
function readSettings() {
  const missing = needed.filter((name) => !process.env[name])
  if (missing.length > 0)
    throw new StartupError(
      `--kubernetes needs ${missing.join(', ')}: set them as for a Chowder outside of the cluster, docs/kubernetes.md.`,
    )
  return Object.fromEntries(needed.map((name) => [name, process.env[name] ?? ''])) as Record<
    (typeof needed)[number],
    string
  >
}

/**
 * Agents in the cluster of KUBECONFIG beside the same pods by hand, one at a time and many at once. Throws an Error that
 * says what is missing.
 */
export async function measureKubernetes(report: (text: string) => void): Promise<(Fact | Figure)[]> {
  const settings = readSettings()
  const undo: Undo = []
  try {
    report('starting PostgreSQL and Chowder')
    const { chowder } = await createSetup(undo, {
      ...settings,
      SANDBOX_DRIVER: 'kubernetes',
      RELAY_PORT: new URL(settings.RELAY_URL).port,
      ANTHROPIC_BASE_URL: 'http://127.0.0.1:9', // nothing listens there, and no key is asked of it
      // The requests of many agents shall fit on a node of two processors.
      KUBERNETES_REQUEST_PERCENT: '5',
    })
    const all = await startChowder({ ...chowder, role: 'all', logFile: join(chowder.dataDir, 'all.log') })
    undo.push(() => all.stop('SIGTERM'))
    const tenant = await connect(all.url)
    const pods = createPods(settings.KUBECONFIG, settings.KUBERNETES_NAMESPACE)
    undo.push(() => pods.removeAll())
    const deleteAgent = async (id: string) => {
      await tenant.call('DELETE', `/v1/instances/${id}`)
      await until('deleted', stopTimeoutMs, async () => !(await pods.isThere(id)))
    }

    report('a first agent, which does not count')
    const first = await createAgent(tenant, startTimeoutMs)
    const recipe = await pods.recipeOf(first)
    await deleteAgent(first)
    const byChowder = async () => {
      let id = ''
      const seconds = await secondsOf(async () => {
        id = await createAgent(tenant, startTimeoutMs)
      })
      await deleteAgent(id)
      return seconds
    }
    const byHand = async (round: number) => {
      const name = `bench-${round}`
      const seconds = await secondsOf(() => pods.start(recipe, name, startTimeoutMs, mustNotEnd))
      await pods.remove(name)
      return seconds
    }
    const alone = await inTurn('create to running', { atMost: 1.15 }, rounds, report, byChowder, byHand)
    const hand: Hand = {
      start: (name, { timeoutMs, ended }) => pods.start(recipe, name, timeoutMs, ended),
      remove: pods.remove,
      deleteAgent,
    }
    return [alone, ...(await measureTogether(tenant, hand, report))]
  } finally {
    await undoAll(undo)
  }
}

function mustNotEnd(): never {
  throw new Error('the gateway of a pod that was made by hand ended')
}
