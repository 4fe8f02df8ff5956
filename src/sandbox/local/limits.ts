import { createHash } from 'node:crypto'
import { join } from 'node:path'
import type { Logger } from '#platform/log.ts'
import type { KeptLimits, Resources } from '#sandbox/driver.ts'
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
const prlimit = '/usr/bin/prlimit'
const blocksPerMegabyte = 2048
const megabyte = 1024 * 1024
const isRoot = process.getuid?.() === 0

/** A command with what it needs in its environment. */
export interface LimitedCommand {
  argv: readonly [string, ...string[]]
  env: Record<string, string>
}

/**
 * The command that runs `argv` under the limits of a sandbox. Without a control group the kernel limits only what it
 * limits of each process and, under root, the number of processes of the sandbox's user.
 */
export function limitedCommand(
  { resources, uid }: Pick<SandboxRecord, 'resources' | 'uid'>,
  group: ControlGroup | null,
  argv: readonly string[],
): LimitedCommand {
  const diskMb = resources?.diskMb ?? 0
  const limited = ['/bin/sh', enter, ...(group ? entriesOf(group) : []), '--', ...argv] as const
  const isLimitedByUser = !group && uid !== null && resources !== undefined
  return {
    argv: isLimitedByUser ? [prlimit, `--nproc=${resources.pids}`, '--', ...limited] : limited,
    env: diskMb > 0 ? { FILE_BLOCKS: String(diskMb * blocksPerMegabyte) } : {},
  }
}

/** The control groups of a data folder's sandboxes, which are looked for at the first call. */
export function lazyControlGroups(
  dataDir: string,
  parent: string,
  log: Pick<Logger, 'warn'> | undefined,
): () => Promise<ControlGroups> {
  const name = `chowder-${createHash('sha256').update(dataDir).digest('hex').slice(0, 12)}`
  const exists = async (id: string) => isSandboxId(id) && (await sandboxFolder(parent, id).exists())
  let opened: Promise<ControlGroups> | undefined
  async function open(): Promise<ControlGroups> {
    const groups = await openControlGroups(name, { isRoot, exists })
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
  const group = await folder.controlGroup()
  if (!group) {
    // That of its user can be changed only with the next start.
    const pids = record.uid === null ? null : (record.resources?.pids ?? null)
    return { memoryMb: null, cpus: null, pids }
  }
  const isChanged = await setLimits(group, resources)
  const { memoryLimitBytes } = await usageOf(group)
  const memoryMb = isChanged || memoryLimitBytes === null ? resources.memoryMb : memoryLimitBytes / megabyte
  return { memoryMb, cpus: resources.cpus, pids: resources.pids }
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
