import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { SandboxAbsentError, type SandboxPaths, type SandboxSpec } from '#sandbox/driver.ts'
import type { SandboxFolder, SandboxRecord } from './folder.ts'
import { gatewayPort, proxyPort, roomPaths } from './jail.ts'
import { usersWithProcesses } from './processes.ts'
import { becomesFree, createReservations, isPortFree, type Range } from './reservations.ts'

const isRoot = process.getuid?.() === 0
/**
 * The user ids of sandboxes under root, which no other user of the machine may have: above those that `useradd` and
 * directory services usually assign, and below 65,536, so that a user namespace of the usual size has them.
 */
export const agentUids: Range = { first: 50_000, last: 59_999 }
const defaultPorts: Range = { first: 21_000, last: 29_999 }

export interface RecordsOptions {
  dataDir: string
  node: string
  releaseFolder(release: string): string
  ports?: Range | undefined
  /** Whether created or renewed sandboxes run in jails, which need no port of the host. */
  isJailed: boolean
}

/** The records of a data folder's sandboxes, each with a port and, under root, its own user. */
export function createRecords({ dataDir, node, releaseFolder, ports: range, isJailed }: RecordsOptions) {
  // Files left outside the home, for example in /tmp, would belong to the next sandbox with this uid.
  const userIds = createReservations(join(dataDir, 'uids'), agentUids, 'user id', join(dataDir, 'last-uid'))
  const ports = createReservations(join(dataDir, 'ports'), range ?? defaultPorts, 'port')

  const describe = (spec: SandboxSpec, folder: SandboxFolder, uid: number | null, port: number): SandboxRecord => {
    const { id, organizationId, release, labels, resources, room } = spec
    const hasRoom = isJailed && room !== undefined
    const paths: SandboxPaths = {
      ...{ node, release: releaseFolder(release), home: folder.home, port },
      ...(isJailed && { proxy: `http://127.0.0.1:${proxyPort}` }),
      ...(hasRoom && { room: roomPaths }),
    }
    const [command, env] = [spec.command(paths), spec.env(paths)]
    const record = { id, organizationId, release, labels, uid, paths, command, env, resources }
    return isJailed ? { ...record, isJailed, ...(hasRoom && { room }) } : record
  }

  async function takeUid(id: string): Promise<number> {
    const running = await usersWithProcesses()
    return userIds.take(id, (uid) => !running.has(uid))
  }
  const takePort = async (id: string) => (isJailed ? gatewayPort : ports.take(id, isPortFree))

  async function existing(folder: SandboxFolder): Promise<SandboxRecord> {
    const record = await folder.readRecord()
    if (!record) throw new SandboxAbsentError(`there is no sandbox ${folder.id}`)
    // A sandbox that ran as an ordinary user must not run as root.
    if (isRoot && record.uid === null) throw new Error(`sandbox ${folder.id} was not made by root and cannot run as it`)
    return record
  }

  return {
    /** Throws SandboxAbsentError without a record. */
    existing,
    /** Creates the folder and the record, with the user and the port reserved by a killed create, if any. */
    async make(spec: SandboxSpec, folder: SandboxFolder): Promise<SandboxRecord> {
      await folder.make()
      const [reservedUid] = await userIds.heldBy(spec.id)
      const [reservedPort] = await ports.heldBy(spec.id)
      const uid = isRoot ? (reservedUid ?? (await takeUid(spec.id))) : null
      const port = isJailed ? gatewayPort : (reservedPort ?? (await takePort(spec.id)))
      const record = describe(spec, folder, uid, port)
      if (await folder.publishRecord(record)) return record
      const published = await existing(folder)
      if (uid !== null && published.uid !== uid) await userIds.free(uid)
      if (published.paths.port !== port && !isJailed) await ports.free(port)
      return published
    },
    /**
     * Updates the record of a stopped sandbox. The sandbox gets another port if a foreign program has taken its own.
     */
    async renew(spec: SandboxSpec, folder: SandboxFolder, old: SandboxRecord, signal: AbortSignal): Promise<void> {
      const { port } = old.paths
      const keepsPort = !isJailed && !old.isJailed && (await becomesFree(port, signal))
      const record = describe(spec, folder, old.uid, keepsPort ? port : await takePort(spec.id))
      if (!isDeepStrictEqual(record, old)) await folder.replaceRecord(record)
      if (!keepsPort && !old.isJailed) await ports.free(port)
    },
    /** The user of a sandbox that may have no record: while it is created or removed, and after a crash in between. */
    async uidOf(folder: SandboxFolder): Promise<number | null> {
      const record = await folder.readRecord()
      return record ? record.uid : ((await userIds.heldBy(folder.id))[0] ?? null)
    },
    /** Frees the user and the port of a removed sandbox. */
    async free(id: string): Promise<void> {
      await userIds.freeAllOf(id)
      await ports.freeAllOf(id)
    },
  }
}
