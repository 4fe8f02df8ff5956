import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, chown, mkdir, open, readFile, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { configPath, gatewayFolders, secretsPath } from '#openclaw/inside/launch.ts'
import { freePort } from '#platform/free-port.ts'
import { answers, createAgent, type Hand, inTurn, measureTogether, secondsOf, until, withChowder } from './agents.ts'
import type { Fact, Figure } from './figures.ts'
import type { Tenant } from './tenant.ts'

/** Of one among many, too. */
const startTimeoutMs = 10 * 60_000
const stopTimeoutMs = 60_000

/** The content of the driver's `sandbox.json`. */
interface SandboxRecord {
  uid: number | null
  command: string[]
  env: Record<string, string>
}

/** Everything it takes to start an instance's gateway again, elsewhere. */
interface Recipe extends SandboxRecord {
  /** The folder that the gateway takes for its own. */
  home: string
  config: string
  secrets: string
}

const exists = (path: string) =>
  stat(path).then(
    () => true,
    () => false,
  )

async function deleteAgent(tenant: Tenant, dataDir: string, id: string): Promise<void> {
  await tenant.call('DELETE', `/v1/instances/${id}`)
  await until('deleted', stopTimeoutMs, async () => !(await exists(join(dataDir, 'sandboxes', id))))
}

/** Creates an instance and deletes it once it runs; returns how long that took in seconds, and its recipe. */
async function startByChowder(tenant: Tenant, dataDir: string) {
  let id = ''
  const seconds = await secondsOf(async () => {
    id = await createAgent(tenant, startTimeoutMs)
  })
  const folder = join(dataDir, 'sandboxes', id)
  const record = JSON.parse(await readFile(join(folder, 'sandbox.json'), 'utf8')) as SandboxRecord
  const home = dirname(record.env.OPENCLAW_HOME ?? '')
  const read = (path: string) => readFile(join(home, path), 'utf8')
  const recipe: Recipe = { ...record, home, config: await read(configPath), secrets: await read(secretsPath) }
  await deleteAgent(tenant, dataDir, id)
  return { seconds, recipe }
}

/**
 * Starts the same gateway on the same configuration in a new folder. Resolves once it is ready, to what ends it; one
 * that ends before is started again, and counted.
 */
async function startByHand(
  recipe: Recipe,
  folder: string,
  timeoutMs: number,
  ended: () => void,
): Promise<() => Promise<void>> {
  const { uid, command, env, config, secrets } = recipe
  const home = join(folder, 'home')
  const settings = JSON.parse(config) as { gateway: { port: number } }
  const port = await freePort()
  const here = (text: string) =>
    text === String(settings.gateway.port) ? String(port) : text.replaceAll(recipe.home, home)
  for (const path of ['', ...gatewayFolders]) {
    await mkdir(join(home, path), { recursive: true, mode: 0o700 })
    if (uid !== null) await chown(join(home, path), uid, uid)
  }
  if (uid !== null) await chmod(folder, 0o711)
  const ownConfig = here(JSON.stringify({ ...settings, gateway: { ...settings.gateway, port } }))
  for (const [path, content] of [
    [configPath, ownConfig],
    [secretsPath, secrets],
  ] as const) {
    const file = await open(join(home, path), 'wx', 0o600)
    await file.writeFile(content)
    if (uid !== null) await file.chown(uid, uid)
    await file.close()
  }

  const [program = '', ...args] = command.map(here)
  const log = await open(join(folder, 'gateway.log'), 'w')
  const start = () => {
    const child = spawn(program, args, {
      cwd: home,
      env: Object.fromEntries(Object.entries(env).map(([name, value]) => [name, here(value)])),
      detached: true,
      stdio: ['ignore', log.fd, log.fd],
      ...(uid !== null && { uid, gid: uid }),
    })
    return { child, over: once(child, 'exit') }
  }
  let gateway = start()
  async function end(): Promise<void> {
    gateway.child.kill('SIGTERM')
    const deadline = setTimeout(() => gateway.child.kill('SIGKILL'), stopTimeoutMs)
    if (gateway.child.exitCode === null && gateway.child.signalCode === null) await gateway.over
    clearTimeout(deadline)
    await log.close()
  }
  try {
    await until('ready', timeoutMs, () => {
      if (gateway.child.exitCode !== null) {
        ended()
        gateway = start()
      }
      return answers(port, '/readyz')
    })
  } catch (error) {
    await end()
    throw error
  }
  return end
}

/**
 * From a create to a running agent, beside starting the same gateway with the same configuration by hand: both from
 * an empty folder, one at a time in turn, and many at once.
 */
export function measureStart(count: number, report: (text: string) => void): Promise<(Fact | Figure)[]> {
  return withChowder({ ANTHROPIC_BASE_URL: 'http://127.0.0.1:9' }, report, async ({ tenant, dataDir }) => {
    report('a first agent, which does not count')
    let { recipe } = await startByChowder(tenant, dataDir)
    const inFolder = (name: string, timeoutMs: number, ended: () => void) =>
      startByHand(recipe, join(dataDir, name), timeoutMs, ended)
    const mustNotEnd = () => {
      throw new Error('the gateway that was started by hand ended')
    }
    const byHand = async (round: number) => {
      let end = async () => {}
      const seconds = await secondsOf(async () => {
        end = await inFolder(`by-hand-${round}`, startTimeoutMs, mustNotEnd)
      })
      await end()
      return seconds
    }
    const byChowder = async () => {
      const started = await startByChowder(tenant, dataDir)
      recipe = started.recipe
      return started.seconds
    }
    const alone = await inTurn('create to running', { atMost: 1.15 }, count, report, byChowder, byHand)
    const ends = new Map<string, () => Promise<void>>()
    const hand: Hand = {
      start: async (name, { timeoutMs, ended }) => void ends.set(name, await inFolder(name, timeoutMs, ended)),
      remove: async (name) => ends.get(name)?.(),
      deleteAgent: (id) => deleteAgent(tenant, dataDir, id),
    }
    return [alone, ...(await measureTogether(tenant, hand, report))]
  })
}
