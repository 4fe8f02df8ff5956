import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { RoomSpec, SandboxPaths } from '#sandbox/driver.ts'

/**
 * Folders in a sandbox's home that must exist, with a file in each, before the gateway starts. OpenClaw treats a
 * workspace that became empty within a day of its last use as lost, and then refuses every turn.
 */
export const gatewayFolders = ['home', 'state', 'state/workspace', 'tmp'] as const

/** Paths relative to a sandbox's home. */
export const configPath = 'state/openclaw.json'
/**
 * The configuration before the last change of a running gateway. A starting gateway restores it if the current one has
 * less than half its bytes.
 */
export const configBackupPath = `${configPath}.bak`
/**
 * The `GatewaySecrets` of the gateway, which differ at each start. The configuration only refers to them, so it stays
 * unchanged: with a changed one, OpenClaw 2026.9.6 checks all stored data at its start, which takes 1.8 s.
 */
export const secretsPath = 'state/secrets.json'
/**
 * Exists if the last gateway ended without a stop or restart that somebody asked for. OpenClaw then counts that end, and
 * starts no channels after three of them within five minutes.
 */
export const endedByItselfPath = 'state/ended-by-itself'
export const workspacePath = 'state/workspace'

/**
 * The room of the agent's tools. The name is OpenClaw's, for a sandbox shared by all agents; it uses an existing folder
 * unchanged. The hidden folder is where OpenClaw would load plugins into the gateway from.
 */
export const toolRoom: RoomSpec = {
  folder: workspacePath,
  socketFolder: 'room',
  place: 'openclaw-ssh-shared-8198076c/workspace',
  hidden: '.openclaw',
}

/** Plugins there would run in the gateway. An agent may have put some there before its tools had a separate room. */
export const pluginsInWorkspace = `${workspacePath}/${toolRoom.hidden}/extensions`

/** The required folders of a separate room, like `gatewayFolders`. */
export const roomFolders = [toolRoom.socketFolder, `${workspacePath}/${toolRoom.hidden}`] as const

/** The argument vector of OpenClaw's command line, for a process beside the gateway. */
export const openclawCommand = ({ node, release }: SandboxPaths, ...args: string[]): string[] => [
  node,
  `${release}/node_modules/openclaw/openclaw.mjs`,
  ...args,
]

const forgetRuns = readFileSync(join(import.meta.dirname, 'forget-runs.mjs'), 'utf8')

/** The URL of a program. A sandbox does not show the folder of the program. */
const dataUrl = (program: string) => `data:text/javascript,${encodeURIComponent(program)}`

/** The option of Node.js that loads a program before OpenClaw. */
const loadFirst = (program: string) => ['--import', dataUrl(program)]

const firstState = dataUrl(readFileSync(join(import.meta.dirname, 'first-state.mjs'), 'utf8'))
const keepDrain = loadFirst(readFileSync(join(import.meta.dirname, 'keep-drain.mjs'), 'utf8'))
const proxiedNames = loadFirst(readFileSync(join(import.meta.dirname, 'proxied-names.mjs'), 'utf8'))
const proxyFromSecrets = loadFirst(readFileSync(join(import.meta.dirname, 'proxy-from-secrets.mjs'), 'utf8'))
const maskOutput = loadFirst(readFileSync(join(import.meta.dirname, 'mask-output.mjs'), 'utf8'))

/**
 * Runs two programs with OpenClaw's state folder, then becomes the gateway with the same pid and signals. OpenClaw
 * refuses secrets that a group may read, which happens once a platform has given a group the files of a volume.
 */
const prepareThenStart =
  '"$1" --no-warnings --import "$2" --input-type=module -e "$3" "$4"; chmod 600 "$4/secrets.json"; shift 4; exec "$@"'

/**
 * The gateway's argument vector. It contains no secret: secrets are in files. However the gateway is started, it first
 * forgets the runs that its last end interrupted. A new one is first given the first state of its release.
 */
export const gatewayCommand = (paths: SandboxPaths): string[] => [
  ...['/bin/sh', '-c', prepareThenStart, 'sh', paths.node, firstState, forgetRuns, `${paths.home}/state`],
  ...[paths.node, ...maskOutput],
  ...(paths.proxy === undefined ? [] : [...keepDrain, ...proxiedNames]),
  ...(paths.proxyAsksWho ? proxyFromSecrets : []),
  ...openclawCommand(paths, 'gateway', 'run', '--port', String(paths.port), '--bind', 'loopback').slice(1),
]

/**
 * The folder of the compile cache that the agents of a release share, and of the first state of new ones, read-only,
 * beside the release.
 */
export const compileCacheFolder = (releaseFolder: string): string => `${releaseFolder}-warm-start`

/** The gateway's whole environment. The gateway writes only below the sandbox's home, temporary files included. */
export const gatewayEnv = (
  { home, release, proxy, proxyAsksWho }: SandboxPaths,
  options: { clawhubUrl?: string | undefined } = {},
): Record<string, string> => ({
  OPENCLAW_HOME: `${home}/home`,
  HOME: `${home}/home`,
  OPENCLAW_STATE_DIR: `${home}/state`,
  OPENCLAW_CONFIG_PATH: `${home}/${configPath}`,
  TMPDIR: `${home}/tmp`,
  PATH: '/usr/local/bin:/usr/bin:/bin',
  NODE_COMPILE_CACHE: compileCacheFolder(release), // Node.js ignores a missing folder
  OPENCLAW_PACKAGED_COMPILE_CACHE_RESPAWNED: '1', // without this, it restarts itself with its own cache
  OPENCLAW_NO_RESPAWN: '1', // a restart keeps the pid
  OPENCLAW_DISABLE_BONJOUR: '1',
  OPENCLAW_OFFLINE: '1', // no downloads of helper programs
  OPENCLAW_NO_AUTO_UPDATE: '1',
  OPENCLAW_EXEC_SHELL_SNAPSHOT: '0',
  ...(proxy !== undefined && {
    // Node.js also passes it to its child programs. A proxy URL with credentials is among the secrets instead, because
    // those change.
    ...(!proxyAsksWho && { OPENCLAW_PROXY_URL: proxy }),
    NODE_USE_ENV_PROXY: '1', // without this, Node.js ignores the proxy in child programs
  }),
  ...(options.clawhubUrl !== undefined && { CLAWHUB_URL: options.clawhubUrl }),
})
