import type { SandboxPaths } from '#sandbox/driver.ts'

/**
 * Folders below a sandbox's own that must exist, with a file in each, before the gateway starts. A workspace that has
 * become empty within a day of its last use counts as lost to OpenClaw, which then refuses every turn.
 */
export const gatewayFolders = ['home', 'state', 'state/workspace', 'tmp'] as const

/** Paths below a sandbox's own folder. */
export const configPath = 'state/openclaw.json'
export const workspacePath = 'state/workspace'
export const soulPath = `${workspacePath}/SOUL.md`

/** The argument vector of OpenClaw's command line, for a program beside the gateway. */
export const openclawCommand = ({ node, release }: SandboxPaths, ...args: string[]): string[] => [
  node,
  `${release}/node_modules/openclaw/openclaw.mjs`,
  ...args,
]

/** The gateway's argument vector. It holds no secret: the configuration file does. */
export const gatewayCommand = (paths: SandboxPaths): string[] =>
  openclawCommand(paths, 'gateway', 'run', '--port', String(paths.port), '--bind', 'loopback')

/** The folder of the compile cache that the agents of a release share: beside the release, and only read by them. */
export const compileCacheFolder = (releaseFolder: string): string => `${releaseFolder}-compile-cache`

/** The gateway's whole environment. Everything it writes is below the sandbox's own folder, its temporary files too. */
export const gatewayEnv = (
  { home, release }: SandboxPaths,
  options: { clawhubUrl?: string | undefined } = {},
): Record<string, string> => ({
  OPENCLAW_HOME: `${home}/home`,
  HOME: `${home}/home`,
  OPENCLAW_STATE_DIR: `${home}/state`,
  OPENCLAW_CONFIG_PATH: `${home}/${configPath}`,
  TMPDIR: `${home}/tmp`,
  PATH: '/usr/local/bin:/usr/bin:/bin',
  NODE_COMPILE_CACHE: compileCacheFolder(release), // Node.js ignores a folder that is missing
  OPENCLAW_PACKAGED_COMPILE_CACHE_RESPAWNED: '1', // else it starts itself again with a cache of its own
  OPENCLAW_NO_RESPAWN: '1', // a restart stays in this pid
  OPENCLAW_DISABLE_BONJOUR: '1',
  OPENCLAW_OFFLINE: '1', // no downloads of helper programs
  OPENCLAW_NO_AUTO_UPDATE: '1',
  OPENCLAW_EXEC_SHELL_SNAPSHOT: '0',
  ...(options.clawhubUrl !== undefined && { CLAWHUB_URL: options.clawhubUrl }),
})
