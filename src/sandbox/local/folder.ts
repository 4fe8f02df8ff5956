import { randomUUID } from 'node:crypto'
import { chmod, link, mkdir, readdir, readFile, rename, rm, stat, unlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Resources, RoomSpec, SandboxPaths } from '#sandbox/driver.ts'
import type { ControlGroup } from './control-group.ts'
import type { ProcessId } from './processes.ts'

/** The record of a sandbox, in its `sandbox.json`. It holds no secret. */
export interface SandboxRecord {
  id: string
  organizationId: string
  release: string
  labels: Record<string, string>
  /** The user (and group) of its processes; null for the control plane's own. */
  uid: number | null
  paths: SandboxPaths
  command: readonly string[]
  env: Record<string, string>
  /** Absent in the record of an earlier version. */
  resources?: Resources
  /** Whether it runs in a jail. */
  isJailed?: true
  /** The separate room of the jail. */
  room?: RoomSpec
}

const isRoot = process.getuid?.() === 0
/** Agents can traverse the control plane's folders to their own home, but not list them. */
const passableMode = isRoot ? 0o711 : 0o700
const staleUploadMs = 60 * 60_000

const hasCode = (error: unknown, code: string) => (error as NodeJS.ErrnoException).code === code

async function textOf(path: string): Promise<string | null> {
  try {
    return await readFile(path, 'utf8')
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return null
    throw error
  }
}

async function processIn(path: string): Promise<ProcessId | null> {
  const [, pid, startTime] = /^(\d+) (\d+)\n$/.exec((await textOf(path)) ?? '') ?? []
  return pid && startTime ? { pid: Number(pid), startTime } : null
}

/** Whether the name of a folder can be a sandbox's. */
export const isSandboxId = (name: string): boolean => /^[0-9A-Za-z][0-9A-Za-z_-]{0,63}$/.test(name)

export type SandboxFolder = ReturnType<typeof sandboxFolder>

/** The file stores the paths under the name `inside`. */
const parseRecord = (text: string): SandboxRecord => {
  const { inside: paths, ...others } = JSON.parse(text)
  return { ...others, paths }
}
const formatRecord = ({ paths: inside, ...others }: SandboxRecord): string =>
  `${JSON.stringify({ ...others, inside }, null, 2)}\n`

/**
 * A sandbox's folder: the control plane's own part, which the tenant can neither list nor write, with the folder `home`
 * in it.
 */
export function sandboxFolder(parent: string, id: string) {
  if (!isSandboxId(id)) throw new Error('an id that cannot name a sandbox')
  const path = join(parent, id)
  const home = join(path, 'home')
  const recordPath = join(path, 'sandbox.json')
  /** Files before they are moved into the home, where the tenant cannot change them. */
  const uploads = join(path, 'uploads')
  /** Only for the programs around its jail. */
  const jail = join(path, 'jail')

  const writeNew = async (record: SandboxRecord): Promise<string> => {
    const temporary = join(uploads, `${randomUUID()}.json`)
    await writeFile(temporary, formatRecord(record), { mode: 0o600, flush: true })
    return temporary
  }

  return {
    id,
    path,
    home,
    uploads,
    jail,
    /** The folder in which its jail is built. */
    jailRoot: join(jail, 'root'),
    /** The control plane's access to a gateway in a jail. */
    gatewaySocket: join(jail, 'gateway'),
    log: join(path, 'gateway.log'),
    exists: () =>
      stat(path).then(
        () => true,
        (error) => {
          if (hasCode(error, 'ENOENT')) return false
          throw error
        },
      ),
    async make(): Promise<void> {
      await mkdir(uploads, { recursive: true, mode: 0o700 })
      await chmod(path, passableMode) // whatever the umask
      await chmod(parent, passableMode)
    },
    async readRecord(): Promise<SandboxRecord | null> {
      const text = await textOf(recordPath)
      return text === null ? null : parseRecord(text)
    },
    async replaceRecord(record: SandboxRecord): Promise<void> {
      await rename(await writeNew(record), recordPath)
    },
    /** False if another create was faster: its record is used. */
    async publishRecord(record: SandboxRecord): Promise<boolean> {
      const temporary = await writeNew(record)
      try {
        await link(temporary, recordPath)
        return true
      } catch (error) {
        if (hasCode(error, 'EEXIST')) return false
        throw error
      } finally {
        await unlink(temporary)
      }
    },
    /** Removes the files of killed writers. */
    async removeStaleUploads(): Promise<void> {
      for (const name of await readdir(uploads)) {
        const upload = join(uploads, name)
        const { mtimeMs } = await stat(upload).catch(() => ({ mtimeMs: Date.now() }))
        if (Date.now() - mtimeMs > staleUploadMs) await rm(upload, { force: true })
      }
    },
    /** The control group of the last started gateway; null without one, and after a restart of the host. */
    async controlGroup(): Promise<ControlGroup | null> {
      const group: ControlGroup | null = JSON.parse((await textOf(join(path, 'control-group.json'))) ?? 'null')
      return group && (await stat(group.memory).catch(() => null)) && group
    },
    writeControlGroup: (group: ControlGroup | null) =>
      writeFile(join(path, 'control-group.json'), JSON.stringify(group), { mode: 0o600 }),
    /** The last started gateway; it may have ended. */
    gateway: () => processIn(join(path, 'gateway')),
    /** The first process of the last jail: all processes in the jail end with it. */
    init: () => processIn(join(path, 'init')),
    /** The launcher that waits for the gateway's end. */
    supervisor: () => processIn(join(path, 'supervisor')),
    /** The exit code of the last gateway; null while it is unknown. */
    async exitCode(): Promise<number | null> {
      const [, code] = /^(\d+)\n$/.exec((await textOf(join(path, 'exit'))) ?? '') ?? []
      return code === undefined ? null : Number(code)
    },
  }
}
