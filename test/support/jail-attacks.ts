import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { randomBytes, randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { rm, writeFile } from 'node:fs/promises'
import { createServer, type Server } from 'node:net'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { LocalHost } from './local-host.ts'

const run = promisify(execFile)
const within = () => AbortSignal.timeout(30_000)

/** Printed by an attack that has what it wants. */
export const got = 'GOT-WHAT-IT-WANTS'
const isRoot = process.getuid?.() === 0

export interface Attack {
  name: string
  /** Whether it succeeds without a jail: else what it wants may not be there at all. */
  succeedsOutside: boolean
  outside: string
  inJail: string
}

/**
 * The shell commands of the attacks on a host. Those that the user of the sandbox may do anyway succeed without a jail.
 */
function attacksOn(target: Target): Record<string, { command: string; isOpen: boolean }> {
  const { dataDir, ports, pid, names, other } = target
  const tcp = (host: string, port: number) => `timeout 3 bash -c 'exec 3<>/dev/tcp/${host}/${port} && cat <&3'`
  const unix = (path: string) => `perl -MIO::Socket::UNIX -e 'print IO::Socket::UNIX->new(Peer => "${path}")->getline'`
  const all = (command: string) => ({ command, isOpen: true })
  /** Only the user that runs Chowder may do it. */
  const own = (command: string) => ({ command, isOpen: !isRoot })
  const nobody = (command: string) => ({ command, isOpen: false })
  return {
    'a file of the data folder': own(`cat ${dataDir}/secret-key`),
    'the home of another agent': own(`cat ${other}/secret`),
    'the socket of a database': all(unix(names.socket)),
    'an abstract socket': all(unix(`\\0${names.abstract}`)),
    'a service on 127.0.0.1': all(tcp('127.0.0.1', ports.loopback)),
    'a service on all addresses': all(tcp('localhost', ports.any)),
    'a network device': all(`grep -v lo: /proc/net/dev | grep -q : && echo ${got}`),
    'M4: a socket that leads to the host (AF_VSOCK)': nobody(`perl -e 'socket my $s, 40, 1, 0 or die; print "${got}"'`),
    'M4: packets below IP (AF_PACKET)': nobody(`perl -e 'socket my $s, 17, 3, 0 or die; print "${got}"'`),
    'M4: a gateway without that filter': nobody(
      `for of in /proc/[0-9]*/status; do grep -qE '^(Seccomp:.2|Pid:.1$)' $of || { [ ! -e $of ] || echo ${got}; }; done`,
    ),
    'M4: a ring of io_uring': nobody(`perl -e 'syscall(425, 8, (chr 0) x 200) >= 0 or die; print "${got}"'`),
    'the metadata service': nobody(tcp('169.254.169.254', 80)),
    'a file in /tmp': all(`cat ${names.temporary}`),
    'shared memory': all(`cat ${names.shared}`),
    'memory of System V': all(`ipcs -m | grep -q ' ${names.memory} ' && echo ${got}`),
    'the environment of another process': own(
      `cat /proc/[0-9]*/environ | tr '\\0' '\\n' | grep ^CANARY= | cut -d= -f2`,
    ),
    'the command line of another process': all(
      `cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -q '[c]${names.process.slice(1)}' && echo ${got}`,
    ),
    'a signal to another process': own(`kill -0 ${pid} && echo ${got}`),
    'the root of another process': own(`cat /proc/${pid}/root/${names.temporary}`),
    'the root of the first process': nobody(`cat /proc/1/root/etc/shadow && echo ${got}`),
    'the passwords of the host': nobody(`cat /etc/shadow ../../../../../../../../etc/shadow && echo ${got}`),
    'a new user namespace': all(`unshare --user --map-root-user true && echo ${got}`),
    'more user namespaces': nobody(`echo 9 >/proc/sys/user/max_user_namespaces && echo ${got}`),
    'a mount': nobody(`mount -t tmpfs none /tmp && echo ${got}`),
    'the namespaces of another process': nobody(`nsenter -t 1 -m -n -p true && echo ${got}`),
    'a write to the release': own(`touch ${dataDir}/releases/gateway.mjs && echo ${got}`),
    'a write to /usr': nobody(`touch /usr/bin/x && echo ${got}`),
    'a write to the root folder': nobody(`touch /x /etc/x /dev/x && echo ${got}`),
    'a capability': nobody(`grep -q '^Cap[A-Za-z]*:.*[1-9a-f]' /proc/self/status && echo ${got}`),
    'new privileges': nobody(`grep -q '^NoNewPrivs:.0' /proc/self/status && echo ${got}`),
    // At its end all processes of its group are ended.
    'more processes than its sandbox has': nobody(`for i in $(seq 70); do sleep 9 & done; echo ${got}`),
    'a core file': nobody(`[ "$(ulimit -c)" = 0 ] || echo ${got}`),
    'the folder of its way in': own(`ls ${dataDir}/sandboxes/*/jail && echo ${got}`),
  }
}

interface Target {
  dataDir: string
  ports: { loopback: number; any: number }
  pid: number
  names: Record<'socket' | 'abstract' | 'temporary' | 'shared' | 'memory' | 'process', string>
  /** The home of another agent. */
  other: string
}

/** Makes on this host what attacks want, and attacks it from a sandbox without a jail and from one in a jail. */
export async function runAttacks(): Promise<Attack[]> {
  const host = await LocalHost.make({ isJailed: true })
  const open = LocalHost.on(host.dataDir)
  const { dataDir } = host
  const mark = randomBytes(6).toString('hex')
  const names = {
    socket: join(dataDir, 'database.sock'),
    abstract: `chowder-${mark}`,
    temporary: `/tmp/chowder-${mark}`,
    shared: `/dev/shm/chowder-${mark}`,
    memory: '',
    process: `canary-${mark}`,
  }
  const servers: Server[] = []
  const listen = async (address: object) => {
    const server = createServer((socket) => socket.on('error', () => {}).end(`${got}\n`)).listen(address)
    servers.push(server)
    await once(server, 'listening')
    return server
  }
  let canary: ChildProcess | undefined
  try {
    await writeFile(join(dataDir, 'secret-key'), got, { mode: 0o600 })
    for (const path of [names.temporary, names.shared]) await writeFile(path, got, { mode: 0o644 })
    const portOf = (server: Server) => (server.address() as { port: number }).port
    const ports = {
      loopback: portOf(await listen({ host: '127.0.0.1', port: 0 })),
      any: portOf(await listen({ host: '::', port: 0 })),
    }
    await listen({ path: names.socket, readableAll: true, writableAll: true })
    await listen({ path: `\0${names.abstract}` })
    names.memory = /(\d+)/.exec((await run('ipcmk', ['-M', '64', '-p', '0666'])).stdout)?.[1] ?? ''
    canary = spawn('/usr/bin/perl', ['-e', 'sleep 600', names.process], { env: { CANARY: got }, stdio: 'ignore' })
    const running = async (driver: LocalHost) => {
      const id = randomUUID()
      await driver.driver.create(host.specOf(id), within())
      await driver.driver.start(id, within())
      return id
    }
    const other = await running(host)
    await host.driver.files(other).write('secret', Buffer.from(got), {}, within())
    const target = { dataDir, ports, names, pid: canary.pid ?? 0, other: host.controlFile(other, 'home') }
    const [jailed, plain] = [await running(host), await running(open)]
    const results: Attack[] = []
    for (const [name, { command, isOpen }] of Object.entries(attacksOn(target))) {
      const by = async (driver: LocalHost, id: string) => {
        const { stdout, stderr } = await driver.driver.exec(id, ['sh', '-c', command], { timeoutMs: 10_000 }, within())
        return stdout + stderr
      }
      const [outside, inJail] = [isOpen ? await by(open, plain) : '', await by(host, jailed)]
      results.push({ name, succeedsOutside: isOpen, outside, inJail })
    }
    return results
  } finally {
    canary?.kill('SIGKILL')
    for (const server of servers) server.close()
    if (names.memory) await run('ipcrm', ['-m', names.memory])
    for (const path of [names.temporary, names.shared]) await rm(path, { force: true })
    await host.remove()
  }
}
