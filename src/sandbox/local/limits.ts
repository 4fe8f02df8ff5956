import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { release } from 'node:os'
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
import { setDiskQuota } from './disk-quota.ts'
import { isSandboxId, type SandboxFolder, type SandboxRecord, sandboxFolder } from './folder.ts'

const enter = join(import.meta.dirname, 'enter.sh')
/** Agents without a control group get a tenth of the processor time of a program that competes with one of theirs. */
const niceness = ['/usr/bin/nice', '-n', '10'] as const
const prlimit = '/usr/bin/prlimit'
/** Since this version the kernel counts the processes of each user namespace by themselves, and so those of each jail. */
const countsNamespacesSince = [5, 14] as const
const blocksPerMegabyte = 2048
/** From so much on, V8 has a larger heap. */
const muchMemoryMb = 15 * 1024
const megabyte = 1024 * 1024
const isRoot = process.getuid?.() === 0

/** A command with what it needs in its environment. */
export interface LimitedCommand {
  argv: readonly [string, ...string[]]
  env: Record<string, string>
}

/** The command that runs a program with at most so many processes and threads of its user, in its user namespace. */
export const withProcesses = (pids: number, argv: readonly string[]): [string, ...string[]] => [
  prlimit,
  `--nproc=${pids}`,
  '--',
  ...argv,
]

/** Whether a kernel of that version counts the processes of each user namespace by themselves. */
export function countsNamespaces(version: string): boolean {
  const [major = 0, minor = 0] = version.split('.').map(Number.parseFloat)
  const [least, leastMinor] = countsNamespacesSince
  return major > least || (major === least && minor >= leastMinor)
}

/** The most that this process can give to another one. */
const mostProcesses = (): number =>
  Number(/^Max processes +\S+ +(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))?.[1] ?? Number.MAX_SAFE_INTEGER)

type Limited = Pick<SandboxRecord, 'resources' | 'uid' | 'isJailed'>

/**
 * How many processes and threads the jail of a sandbox may have that has neither a control group nor a user of its own;
 * null for another sandbox, and where the kernel cannot limit it.
 */
export function processesOfJail({ resources, uid, isJailed }: Limited, group: ControlGroup | null): number | null {
  const isMeant = !group && uid === null && isJailed && resources !== undefined && countsNamespaces(release())
  return isMeant ? Math.min(resources.pids, mostProcesses()) : null
}

/**
 * The command that runs `argv` under the limits of a sandbox. Without a control group the kernel limits only what it
 * limits of each process and the number of processes of the sandbox's user or, by `processesOfJail`, of its jail; and
 * others go before them.
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

/**
 * What tells a gateway its memory where it has no control group, and would go by that of the host: its heap grows to what
 * it would be in one.
 */
export function memoryVariables(resources: Resources | undefined, group: ControlGroup | null): Record<string, string> {
  if (group || !resources) return {}
  const { memoryMb } = resources
  // As `Heap` of V8 reckons it from the memory of a host; the test compares it with control groups.
  const oldMb = Math.min(memoryMb < muchMemoryMb ? 2048 : 4096, Math.floor(memoryMb / 2))
  const newMb = Math.min(64, 2 ** Math.ceil(Math.log2(memoryMb / 64)))
  return { NODE_OPTIONS: `--max-old-space-size=${oldMb} --max-semi-space-size=${newMb}` }
}

/** The control groups of a data folder's sandboxes, which are looked for at the first call. */
export function lazyControlGroups(
  dataDir: string,
  parent: string,
  log: Pick<Logger, 'warn'> | undefined,
): () => Promise<ControlGroups> {
  const name = `chowder-${createHash('sha256').update(dataDir).digest('hex').slice(0, 12)}`
  const exists = async (id: string) => isSandboxId(id) && (await sandboxFolder(parent, id).exists())
  const groupOf = async (id: string) => (isSandboxId(id) ? sandboxFolder(parent, id).controlGroup() : null)
  let opened: Promise<ControlGroups> | undefined
  async function open(): Promise<ControlGroups> {
    const groups = await openControlGroups(name, { isRoot, exists, groupOf })
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

/** Changes the limits of a sandbox that runs. Returns those that the kernel keeps. */
export async function changeLimits(
  folder: SandboxFolder,
  record: SandboxRecord,
  resources: Resources,
): Promise<KeptLimits> {
  const { uid } = record
  const hasQuota = uid !== null && (await setDiskQuota(folder.home, uid, resources.diskMb))
  const diskMb = hasQuota ? resources.diskMb : null
  const group = await folder.controlGroup()
  if (!group) {
    // That of its user, or of its jail, can be changed only with the next start.
    const pids = uid === null ? processesOfJail(record, group) : (record.resources?.pids ?? null)
    return { memoryMb: null, cpus: null, pids, diskMb }
  }
  const isChanged = await setLimits(group, resources)
  const { memoryLimitBytes } = await usageOf(group)
  const memoryMb = isChanged || memoryLimitBytes === null ? resources.memoryMb : memoryLimitBytes / megabyte
  return { memoryMb, cpus: resources.cpus, pids: resources.pids, diskMb }
}

/** Makes the group of a sandbox that is about to start, and notes it in the sandbox's folder. */
export async function makeGroup(
  groups: ControlGroups,
  folder: SandboxFolder,
  resources: Resources | undefined,
): Promise<ControlGroup | null> {
  const group = resources ? await groups.make(folder.id, resources) : null
  await folder.writeControlGroup(group)
  return group
}
