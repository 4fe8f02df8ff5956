import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, chown, mkdir, open, readFile, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { configPath, gatewayFolders } from '#openclaw/launch.ts'
import { answers, createAgent, inTurn, secondsOf, until, withChowder } from './agents.ts'
import type { Figure } from './figures.ts'
import type { Tenant } from './tenant.ts'

const startTimeoutMs = 3 * 60_000
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
  config: Buffer
}

const exists = (path: string) =>
  stat(path).then(
    () => true,
    () => false,
  )

/** Creates an instance and deletes it once it runs; returns how long that took in seconds, and its recipe. */
async function startByChowder(tenant: Tenant, dataDir: string) {
  let id = ''
  const seconds = await secondsOf(async () => {
    id = await createAgent(tenant, startTimeoutMs)
  })
  const folder = join(dataDir, 'sandboxes', id)
  const record = JSON.parse(await readFile(join(folder, 'sandbox.json'), 'utf8')) as SandboxRecord
  const home = dirname(record.env.OPENCLAW_HOME ?? '')
  const recipe: Recipe = { ...record, home, config: await readFile(join(home, configPath)) }
  await tenant.call('DELETE', `/v1/instances/${id}`)
  await until('deleted', stopTimeoutMs, async () => !(await exists(folder)))
  return { seconds, recipe }
}

/** Starts the same gateway on the same configuration in a new folder; returns how long it took in seconds. */
async function startByHand(recipe: Recipe, folder: string): Promise<number> {
  const { uid, command, env, config } = recipe
  const home = join(folder, 'home')
  const here = (text: string) => text.replaceAll(recipe.home, home)
  const { gateway } = JSON.parse(config.toString()) as { gateway: { port: number } }
  const startedAt = performance.now()
  for (const path of ['', ...gatewayFolders]) {
    await mkdir(join(home, path), { recursive: true, mode: 0o700 })
    if (uid !== null) await chown(join(home, path), uid, uid)
  }
  if (uid !== null) await chmod(folder, 0o711)
  const file = await open(join(home, configPath), 'wx', 0o600)
  await file.writeFile(config)
  if (uid !== null) await file.chown(uid, uid)
  await file.close()

  const log = await open(join(folder, 'gateway.log'), 'w')
  const [program = '', ...args] = command.map(here)
  const child = spawn(program, args, {
    cwd: home,
    env: Object.fromEntries(Object.entries(env).map(([name, value]) => [name, here(value)])),
    detached: true,
    stdio: ['ignore', log.fd, log.fd],
    ...(uid !== null && { uid, gid: uid }),
  })
  await log.close()
  const ended = once(child, 'exit')
  try {
    await until('ready', startTimeoutMs, () => {
      if (child.exitCode !== null) throw new Error(`the gateway started by hand ended with ${child.exitCode}`)
      return answers(gateway.port, '/readyz')
    })
    return (performance.now() - startedAt) / 1000
  } finally {
    child.kill('SIGTERM')
    const deadline = setTimeout(() => child.kill('SIGKILL'), stopTimeoutMs)
    await ended
    clearTimeout(deadline)
  }
}

/**
 * From a create to a running agent, beside starting the same gateway with the same configuration by hand: both from
 * an empty folder, in turn, one gateway at a time.
 */
export function measureStart(count: number, report: (text: string) => void): Promise<Figure> {
  return withChowder({ ANTHROPIC_BASE_URL: 'http://127.0.0.1:9' }, report, async ({ tenant, dataDir }) => {
    report('a first agent, which does not count')
    let { recipe } = await startByChowder(tenant, dataDir)
    return inTurn(
      'create to running',
      { atMost: 1.15 },
      count,
      report,
      async () => {
        const started = await startByChowder(tenant, dataDir)
        recipe = started.recipe
        return started.seconds
      },
      (round) => startByHand(recipe, join(dataDir, `by-hand-${round}`)),
    )
  })
}
