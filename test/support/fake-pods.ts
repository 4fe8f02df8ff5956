import { type ChildProcess, type ChildProcessWithoutNullStreams, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { cp, mkdir, mkdtemp, readFile, rm } from 'node:fs/promises'
import { constants, tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { programFiles } from '#sandbox/container/image.ts'
import { until } from './until.ts'

const run = promisify(execFile)
const root = join(import.meta.dirname, '../..')
const script = join(import.meta.dirname, 'fake-pod.sh')
const podUid = '10001'

const namespaces = [
  ...['--user', `--map-user=${podUid}`, `--map-group=${podUid}`, '--keep-caps'],
  ...['--mount', '--net', '--ipc', '--uts', '--pid', '--fork', '--kill-child'],
]

/** Carries bytes between its own input and output and a port of the pod; ends with 7 when nobody listens. */
const bridge = `
use IO::Socket::INET; use IO::Select;
my $port = IO::Socket::INET->new("127.0.0.1:$ARGV[0]") or exit 7;
my $open = IO::Select->new($port, \\*STDIN);
while (1) { for my $from ($open->can_read) {
  my $read = sysread $from, my $bytes, 65536;
  if (!$read) { exit 0 if $from == $port; $open->remove($from); shutdown $port, 1; next }
  my ($to, $sent) = ($from == $port ? \\*STDOUT : $port, 0);
  while ($sent < $read) { my $wrote = syswrite $to, $bytes, $read - $sent, $sent; exit 0 unless defined $wrote; $sent += $wrote }
} }`

/** How a program of a pod ended; the code for a signal is 128 + its number. */
const codeOf = async (child: ChildProcess): Promise<number> => {
  if (child.exitCode === null && child.signalCode === null) await once(child, 'exit')
  return child.exitCode ?? 128 + constants.signals[child.signalCode ?? 'SIGKILL']
}

const childOf = async (pid: number): Promise<number> =>
  Number((await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8').catch(() => '')).trim().split(' ')[0])

function signalTo(pid: number, signal: NodeJS.Signals): void {
  try {
    if (pid > 0) process.kill(pid, signal)
  } catch {} // it has ended meanwhile
}

/** The namespaces of a pod with real processes in them. */
export interface FakePod {
  /** Starts a program; it has no parent in the pod. */
  start(argv: readonly string[], env: Record<string, string>, cwd?: string): ChildProcessWithoutNullStreams
  codeOf(child: ChildProcess): Promise<number>
  /** Fulfilled once a program that was started is in the pod, or has ended. */
  entered(child: ChildProcess): Promise<void>
  /** Sends a signal to a program that was started. */
  kill(child: ChildProcess, signal: NodeJS.Signals): Promise<void>
  /** Ends all programs. */
  killAll(): Promise<void>
  /** A connection to a port of the pod, as the input and the output of a process. */
  connect(port: number): ChildProcessWithoutNullStreams
  close(): Promise<void>
}

export interface FakeNode {
  run(volume: string): Promise<FakePod>
  /** The folder of a volume, which is made if it does not exist. */
  volume(name: string): Promise<string>
  removeVolume(name: string): Promise<void>
  close(): Promise<void>
}

/** The one node of the fake Kubernetes: pods are processes of this machine, in namespaces of their own. */
export async function startFakeNode(): Promise<FakeNode> {
  const folder = await mkdtemp(join(tmpdir(), 'chowder-fake-node-'))
  const programs = join(folder, 'programs')
  for (const file of programFiles) await cp(join(root, 'src/sandbox', file), join(programs, file))
  await run(process.execPath, ['--no-warnings', join(programs, 'container/image/strip-types.mjs'), programs])
  await mkdir(join(folder, 'root'))
  const release = join(folder, 'release')
  await cp(join(import.meta.dirname, 'contract-gateway.mjs'), join(release, 'contract-gateway.mjs'))
  await mkdir(join(folder, 'volumes'))
  const pods = new Set<FakePod>()

  async function runPod(volume: string): Promise<FakePod> {
    const init = spawn(
      'unshare',
      [...namespaces, '--', '/bin/sh', script, join(folder, 'root'), volume, programs, release, process.execPath],
      {
        stdio: ['ignore', 'pipe', 'pipe'],
      },
    )
    let words = ''
    init.stderr.on('data', (bytes) => {
      words += bytes
    })
    await Promise.race([
      once(init.stdout, 'data'),
      once(init, 'exit').then(() => {
        throw new Error(`the pod did not start: ${words}`)
      }),
    ])
    const pid = await childOf(init.pid ?? 0)
    const enter = ['-t', String(pid), '-U', '--preserve-credentials', '-m', '-p', '-n', '-i', '-u']
    const start: FakePod['start'] = (argv, env, cwd = '/') =>
      spawn('nsenter', [...enter, `--wdns=${cwd}`, '--', 'setpriv', '--no-new-privs', '--', ...argv], {
        env: { PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', ...env },
      })
    const pod: FakePod = {
      start,
      codeOf,
      async entered(child) {
        const hasEnded = () => child.exitCode !== null || child.signalCode !== null
        await until('a program to be in its pod', async () => hasEnded() || (await childOf(child.pid ?? 0)) > 0)
      },
      async kill(child, signal) {
        signalTo(await childOf(child.pid ?? 0), signal)
      },
      async killAll() {
        await codeOf(start(['/bin/sh', '-c', 'kill -9 -1'], {}))
      },
      connect: (port) => start(['perl', '-e', bridge, String(port)], {}),
      async close() {
        pods.delete(pod)
        signalTo(pid, 'SIGKILL')
        await codeOf(init)
      },
    }
    pods.add(pod)
    return pod
  }

  return {
    run: runPod,
    async volume(name) {
      const path = join(folder, 'volumes', name)
      await mkdir(path, { recursive: true, mode: 0o700 })
      return path
    },
    removeVolume: (name) => rm(join(folder, 'volumes', name), { recursive: true, force: true }),
    async close() {
      await Promise.all([...pods].map((pod) => pod.close()))
      await rm(folder, { recursive: true, force: true })
    },
  }
}
