// Runs in a sandbox before each start of its gateway, with the path of OpenClaw's state folder as its argument. Gives
// a new agent the state database that `saveFirstState` has put beside the compile cache. It identifies no agent.
//
// OpenClaw 2026.9.6 migrates a new state folder, which takes a quarter of the CPU time of that start, unless its
// database names a checkpoint for the same release, configuration, plugins and paths. This program computes that
// checkpoint as OpenClaw does, for an agent without channels. If anything differs, OpenClaw migrates the folder as
// always. Failures are written to the gateway's output, and OpenClaw migrates the folder then too.
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { getCompileCacheDir } from 'node:module'
import { dirname, join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'

const state = process.argv.at(-1)

const hash = (text, encoding = 'hex') => createHash('sha256').update(text).digest(encoding)

/** JSON with the keys of each object in order. */
const sortedJson = (value) =>
  JSON.stringify(value, (_key, inner) =>
    inner === null || typeof inner !== 'object' || Array.isArray(inner)
      ? inner
      : Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : 1))),
  )

/** OpenClaw's sign that a file is unchanged. It is another one on each host that gets the release in an image. */
function signature(path) {
  const { size, mtimeMs, ctimeMs } = statSync(path)
  return { size, mtimeMs, ctimeMs }
}

/** OpenClaw's index of the release's plugins for an agent with this configuration. */
function indexFor({ plugins: { allow } }, index, bundledDiscovery) {
  const policy = { enabled: true, allow, deny: [], bundledDiscovery, slots: { memory: null }, entries: {} }
  const plugins = index.plugins.map((plugin) => ({
    ...plugin,
    manifestFile: signature(plugin.manifestPath),
    ...(plugin.packageJson && {
      packageJson: { ...plugin.packageJson, fileSignature: signature(join(plugin.rootDir, plugin.packageJson.path)) },
    }),
  }))
  const policyHash = hash(JSON.stringify({ plugins: policy, channels: {} }))
  return { ...index, policyHash, workspaceDir: `${state}/workspace`, plugins }
}

/** OpenClaw's fingerprint of all plugins that the agent could load. */
function fingerprintOf(index) {
  const { warning: _warning, generatedAtMs: _time, workspaceDir, ...inventory } = index
  const plugins = inventory.plugins.map(({ doctorContractFile: _file, packageBuild, ...plugin }) => {
    const bundledDist = packageBuild?.bundledDist
    return bundledDist === undefined ? plugin : { ...plugin, packageBuild: { bundledDist } }
  })
  const roots = {
    stock: dirname(index.plugins[0].rootDir),
    global: `${state}/extensions`,
    workspace: `${workspaceDir}/.openclaw/extensions`,
  }
  const discovery = { roots, loadPaths: [], devSourceRoot: null }
  const inventoryFingerprint = hash(sortedJson({ ...inventory, plugins }))
  return hash(JSON.stringify({ discovery, policyFingerprint: index.policyHash, inventoryFingerprint }))
}

/** Makes the database of the release's warm-up that of this agent. */
function adapt(database) {
  const config = JSON.parse(readFileSync(`${state}/openclaw.json`, 'utf8'))
  const read = database.prepare('SELECT value_json FROM config_machine_state WHERE state_key = ?')
  const stateOf = (key) => JSON.parse(read.get(key).value_json)
  const stored = stateOf('plugins.installedIndex')
  const index = indexFor(config, stored.index, stateOf('plugins.bundledDiscovery'))
  database
    .prepare("UPDATE config_machine_state SET value_json = ? WHERE state_key = 'plugins.installedIndex'")
    .run(JSON.stringify({ ...stored, index }))
  // OpenClaw adds the agent to a configuration that names none.
  const effective = { ...config, agents: { entries: { main: {} }, ...config.agents } }
  const configHash = hash(sortedJson(effective), 'base64url')
  const checkpoints = "WHERE meta_key IN ('state-migrations', 'startup-migrations')"
  const { app_version: made } = database.prepare(`SELECT app_version FROM schema_meta ${checkpoints}`).get()
  const checkpoint = [...made.split('\n').slice(0, 3), configHash, configHash, fingerprintOf(index)].join('\n')
  database.prepare(`UPDATE schema_meta SET app_version = ? ${checkpoints}`).run(checkpoint)
}

function create(template) {
  const folder = `${state}/state.new`
  try {
    mkdirSync(folder, { mode: 0o700 })
    const path = `${folder}/openclaw.sqlite`
    writeFileSync(path, readFileSync(template), { mode: 0o600 })
    {
      using database = new DatabaseSync(path)
      adapt(database)
    }
    renameSync(folder, `${state}/state`)
  } catch (error) {
    console.error(`OpenClaw migrates the new state folder itself: ${error.message}`)
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

const cache = getCompileCacheDir()
const template = cache && join(cache, 'first-state.sqlite')
// Chowder itself writes settings into the folder of the agent.
const isNew = !['state', 'agents/main/agent/openclaw-agent.sqlite'].some((path) => existsSync(`${state}/${path}`))
if (isNew && template && existsSync(template)) create(template)
