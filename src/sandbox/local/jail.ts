import { execFile, execFileSync } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { chown, mkdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { commandAsUser, setpriv } from '#sandbox/command-as-user.ts'
import type { RoomPaths, RoomSpec } from '#sandbox/driver.ts'
import { type SandboxFolder, sandboxFolder } from './folder.ts'
import type { ProcessId } from './processes.ts'

/** The port of every gateway in a jail: each jail has its own network. */
export const gatewayPort = 18_789
/** The port of the proxy in the jail. */
export const proxyPort = 3128

const nsenter = '/usr/bin/nsenter'
const path = '/usr/sbin:/usr/bin:/sbin:/bin'
const scriptOf = (name: string) => readFileSync(join(import.meta.dirname, name), 'utf8')
const socketFilter = scriptOf('../socket-filter.pl')
/** The families of local sockets, of IPv4, IPv6 and netlink. */
const socketFamilies = '1,2,10,16'
/** The programs are in the environment: the users of sandboxes may be unable to read this folder. */
const environment = {
  PATH: path,
  JAIL: scriptOf('jail.sh'),
  FORWARDER: scriptOf('forward.pl'),
  SOCKET_FILTER: socketFilter,
  SOCKET_FAMILIES: socketFamilies,
}
/** The program that leads to the separate room, by its path in a jail. */
export const roomPaths: RoomPaths = { ssh: '/programs/room-ssh.py', root: '/room' }
/** OpenClaw's file tools need it in the room, and so do the programs of both rooms. */
const python = '/usr/bin/python3'
const stage = ['/bin/sh', '-c', 'eval "$JAIL"', 'jail'] as const
const probeTimeoutMs = 10_000
/** Length of an instance id. */
const idLength = 36
/** Longest path of a Linux socket, without the NUL. */
const maxSocketPath = 107
const run = promisify(execFile)

let nsenterKeepsCapabilities: boolean | undefined

/** Whether nsenter keeps the capabilities of the namespaces for the next program: since util-linux 2.40. */
function keepsCapabilities(): boolean {
  const help = () => execFileSync(nsenter, ['--help'], { env: {}, encoding: 'utf8', timeout: probeTimeoutMs })
  nsenterKeepsCapabilities ??= help().includes('--keep-caps')
  return nsenterKeepsCapabilities
}

/** A service of the control plane that jailed programs reach at a port of 127.0.0.1. */
interface WayOut {
  port: number
  /** The name of its unix socket. The first line of each connection is the id of the sandbox. */
  service: string
}

export interface JailOptions {
  /** The folder of releases and plugins, which every jail contains. */
  releases: string
  node: string
  waysOut: readonly WayOut[]
  /** The folder of their sockets. */
  waysOutFolder: string
}

export type Jail = ReturnType<typeof createJail>

type Program = readonly [string, ...string[]]

/**
 * The jail of local sandboxes: user, process, mount, network, IPC and host name namespaces of their own. A program in
 * it sees the system's programs, the releases, Node.js and the sandbox's own folder, each at the path that it has on
 * the host, and can write to that folder and to /tmp. It has no capability and no way to gain one, and no network but
 * 127.0.0.1, where the ways out lead to services of the control plane. All of its processes end with the first one.
 */
export function createJail({ releases, node, waysOut, waysOutFolder }: JailOptions) {
  const build = (uid: number | null, root: string, home: string, ways: readonly [string, string], program: Program) => {
    const args = [root, releases, node, home, ...ways, ...program]
    return uid === null
      ? ([...stage, 'start', ...args] as const)
      : ([
          '/usr/bin/unshare',
          '--mount',
          '--propagation',
          'private',
          '--',
          ...stage,
          'plugins',
          String(uid),
          ...args,
        ] as const)
  }

  return {
    releases,
    environment,
    waysOutFolder,
    /**
     * The command that builds the jail of a sandbox, opens its ways in and out, and runs a program in it. It starts in
     * the folder of the ways out, which the sandbox's user cannot enter otherwise.
     */
    gateway(uid: number | null, folder: SandboxFolder, program: Program): Program {
      const ways = waysOut.map(({ port, service }) => `${port}=${folder.id}=${service}`)
      return build(
        uid,
        folder.jailRoot,
        folder.home,
        [`${folder.gatewaySocket}=${gatewayPort}`, ways.join(' ')],
        program,
      )
    },
    /** The command that runs a program in a separate jail, without ways in or out. */
    alone(uid: number | null, folder: SandboxFolder, program: Program): Program {
      return build(uid, folder.jailRoot, folder.home, ['', ''], program)
    },
    /** The command that runs a program in the jail whose first process is `init`, in a folder there. */
    enter(uid: number | null, init: ProcessId, cwd: string, program: Program): Program {
      const keep = keepsCapabilities() ? ['--keep-caps'] : []
      // Without the option the next program loses them, except for the bounding set, which cannot be used without new
      // privileges.
      const drop = keep.length > 0 ? ['--bounding-set=-all', '--inh-caps=-all', '--ambient-caps=-all'] : []
      const namespaces = ['--user', '--preserve-credentials', '--mount', '--net', '--ipc', '--uts', '--pid']
      const filtered = ['/usr/bin/perl', '-e', socketFilter, socketFamilies]
      const target = ['-t', String(init.pid), ...namespaces, ...keep, `--wdns=${cwd}`]
      return commandAsUser(uid, [
        nsenter,
        ...target,
        '--',
        setpriv,
        '--no-new-privs',
        ...drop,
        '--',
        ...filtered,
        ...program,
      ])
    },
  }
}

/** Whether a jail can have a separate room on this host. */
export const hasPython = (): boolean => existsSync(python)

/** The option that makes the jail build a separate room. */
export const roomEnvironment = ({ folder, socketFolder, place, hidden }: RoomSpec): Record<string, string> => ({
  ROOM_FOLDER: folder,
  ROOM_SOCKETS: socketFolder,
  ROOM_PLACE: place,
  ROOM_HIDDEN: hidden,
  ROOM_SSH: scriptOf('../room/room-ssh.py'),
  ROOM_SERVER: scriptOf('../room/room-server.py'),
})

/** The folders that a jail needs besides the home. */
export async function makeJailFolders(folder: SandboxFolder, uid: number | null): Promise<void> {
  for (const path of [folder.jail, folder.jailRoot]) {
    await mkdir(path, { recursive: true, mode: 0o700 })
    if (uid !== null) await chown(path, uid, uid)
  }
}

/** Builds a test jail. Returns null, or the reason why this host does not permit one to this user, for operators. */
export async function jailFault(jail: Jail, dataDir: string, uid: number | null): Promise<string | null> {
  if (`${dataDir}/`.startsWith('/usr/')) return 'CHOWDER_DATA_DIR is in /usr, which agents can read'
  const parent = join(dataDir, 'sandboxes')
  if (sandboxFolder(parent, 'x'.repeat(idLength)).gatewaySocket.length > maxSocketPath) {
    return 'CHOWDER_DATA_DIR is too long for the paths of unix sockets'
  }
  const folder = sandboxFolder(join(dataDir, 'jail-probes'), randomUUID())
  try {
    await folder.make()
    await mkdir(folder.home)
    if (uid !== null) await chown(folder.home, uid, uid)
    await makeJailFolders(folder, uid)
    await mkdir(jail.releases, { recursive: true })
    const [program, ...args] = jail.alone(uid, folder, ['/usr/bin/true'])
    const options = { cwd: '/', env: jail.environment, timeout: probeTimeoutMs, killSignal: 'SIGKILL' } as const
    await run(program, args, options)
    return null
  } catch (error) {
    const { stderr = '', message } = error as Error & { stderr?: string }
    return stderr.trim().split('\n').at(-1) || message
  } finally {
    await rm(folder.path, { recursive: true, force: true })
  }
}
