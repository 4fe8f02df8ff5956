import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Logger } from '#platform/log.ts'
import type { KeptLimits, Resources } from '#sandbox/driver.ts'
import { openFilesOf } from '#sandbox/open-files.ts'
import {
  type ControlGroup,
  type ControlGroups,
  entriesOf,
  openControlGroups,
  setLimits,
  usageOf,
} from './control-group.ts'
import { isSandboxId, type SandboxFolder, type SandboxRecord, sandboxFolder } from './folder.ts'

const enter = join(import.meta.dirname, 'enter.sh')
/** Without a control group: the static weight below Chowder, its database and other programs of the host. */
const niceness = ['/usr/bin/nice', '-n', '10'] as const
const prlimit = '/usr/bin/prlimit'
const blocksPerMegabyte = 2048
const megabyte = 1024 * 1024
const isRoot = process.getuid?.() === 0

/** A command with variables for its environment. */
export interface LimitedCommand {
  argv: readonly [string, ...string[]]
  env: Record<string, string>
}

/**
 * The command that runs a program with a maximum number of processes and threads of its user, in its user namespace.
 */
export const withProcesses = (pids: number, argv: readonly string[]): [string, ...string[]] => [
  prlimit,
  `--nproc=${pids}`,
  '--',
  ...argv,
]

/** The process limit of this process: it cannot give a higher one to another. */
const mostProcesses = (): number =>
  Number(/^Max processes +\S+ +(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))?.[1] ?? Number.MAX_SAFE_INTEGER)

type Limited = Pick<SandboxRecord, 'resources' | 'uid' | 'isJailed'>

/**
 * The limit of processes and threads of a sandbox without a control group and without its own user: that of the user
 * namespace of its jail. Null for another sandbox.
 */
export function processesOfJail({ resources, uid, isJailed }: Limited, group: ControlGroup | null): number | null {
  return !group && uid === null && isJailed && resources ? Math.min(resources.pids, mostProcesses()) : null
}

/**
 * The command that runs `argv` under the limits of a sandbox. Without a control group the kernel limits each process
 * separately, and the number of processes of the sandbox's user or, by `processesOfJail`, of its jail.
 */
export function limitedCommand(record: Limited, group: ControlGroup | null, argv: readonly string[]): LimitedCommand {
  const { resources, uid } = record
  const { diskMb = 0, pids } = resources ?? {}
  const limited = ['/bin/sh', enter, ...(group ? entriesOf(group) : []), '--', ...argv] as const
  const ofJail = processesOfJail(record, group)
  const env = {
    ...(diskMb > 0 && { FILE_BLOCKS: String(diskMb * blocksPerMegabyte) }),
    ...(pids !== undefined && { OPEN_FILES: String(openFilesOf(pids)) }),
    ...(ofJail !== null && { JAIL_PROCESSES: String(ofJail) }),
  }
  if (group) return { argv: limited, env }
  const isLimitedByUser = uid !== null && pids !== undefined
  return { argv: [...niceness, ...(isLimitedByUser ? withProcesses(pids, limited) : limited)], env }
}

/** The name of the control group that has those of a data folder's sandboxes. */
export const controlGroupsName = (dataDir: string): string =>
  `chowder-${createHash('sha256').update(dataDir).digest('hex').slice(0, 12)}`

/** Opens the control groups of a data folder's sandboxes at the first call. */
export function lazyControlGroups(
  dataDir: string,
  parent: string,
  log: Pick<Logger, 'warn'> | undefined,
): () => Promise<ControlGroups> {
  const exists = async (id: string) => isSandboxId(id) && (await sandboxFolder(parent, id).exists())
  let opened: Promise<ControlGroups> | undefined
  async function open(): Promise<ControlGroups> {
    const groups = await openControlGroups(controlGroupsName(dataDir), { isRoot, exists })
    if (groups.missing !== null) {
      const text =
        'this host keeps no limits of memory, processors and processes for agents: see docs/operations.md, limits'
      log?.warn({ reason: groups.missing }, text)
    }
    return groups
  }
  return () => {
    opened ??= open()
    return opened
  }
}

/** Changes the limits of a running sandbox. Returns those that the kernel enforces. */
export async function changeLimits(
  folder: SandboxFolder,
  record: SandboxRecord,
  resources: Resources,
): Promise<KeptLimits> {
  const group = await folder.controlGroup()
  if (!group) {
    // The limit of its user, or of its jail, changes with the next start.
    const pids = record.uid === null ? processesOfJail(record, group) : (record.resources?.pids ?? null)
    return { memoryMb: null, cpus: null, pids, diskMb: null }
  }
  const isChanged = await setLimits(group, resources)
  const { memoryLimitBytes } = await usageOf(group)
  const memoryMb = isChanged || memoryLimitBytes === null ? resources.memoryMb : memoryLimitBytes / megabyte
  return { memoryMb, cpus: resources.cpus, pids: resources.pids, diskMb: null }
}

/** Makes the group of a sandbox that is about to start, and records it in the sandbox's folder. */
export async function makeGroup(
  groups: ControlGroups,
  folder: SandboxFolder,
  resources: Resources | undefined,
): Promise<ControlGroup | null> {
  const group = resources ? await groups.make(folder.id, resources) : null
  await folder.writeControlGroup(group)
  return group
}
