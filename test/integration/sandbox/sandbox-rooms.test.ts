import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { LocalHost } from '../../support/local-host.ts'
import { until } from '../../support/until.ts'

// The second room of a local sandbox. Where it gets its commands from is tested with a real OpenClaw, in test/e2e.

const room = { folder: 'state/workspace', socketFolder: 'room', place: 'shared/workspace', hidden: '.openclaw' }
const within = (ms = 30_000) => AbortSignal.timeout(ms)

describe.runIf(existsSync('/usr/bin/python3'))('a local sandbox with a second room', () => {
  let host: LocalHost
  const id = randomUUID()

  const exec = (script: string) => host.driver.exec(id, ['sh', '-c', script], { timeoutMs: 15_000 }, within())
  const inRoom = (script: string, prefix = '') =>
    exec(`HOME=$HOME/home ${prefix} /programs/room-ssh.py -T host '${script}'`)
  const isThere = () => until('the room', async () => (await inRoom('true')).exitCode === 0)

  beforeAll(async () => {
    host = await LocalHost.make({ isJailed: true })
    await host.driver.create(host.specOf(id, { room }), within())
    const files = host.driver.files(id)
    const write = (path: string, content: string) => files.write(path, Buffer.from(content), {}, within())
    await write('room/.keep', '')
    await write('state/workspace/.openclaw/.keep', '')
    await write('state/workspace/note.txt', 'a note')
    await write('state/secret.json', 'the secret of the gateway')
    await host.driver.start(id, within())
    await isThere()
  }, 60_000)
  afterAll(() => host?.remove(), 60_000)

  test('has it, and says how the gateway reaches it', async () => {
    expect(host.driver.hasTwoRooms).toBe(true)
    const { paths } = await host.driver.observe(id, within())
    expect(paths?.room).toEqual({ ssh: '/programs/room-ssh.py', root: '/room' })
  })

  test('A11: the room holds the shared folder alone, and no way back to the gateway or the host', async () => {
    expect((await inRoom('hostname; cat note.txt; pwd')).stdout).toBe('room\na note/room/shared/workspace\n')
    expect((await exec('cat state/secret.json')).stdout).toBe('the secret of the gateway')
    const search =
      'grep -rls "the secret of" / --exclude-dir=proc --exclude-dir=usr; ls -d /tmp/chowder-* /root /home /.host 2>/dev/null'
    expect((await inRoom(search)).stdout).toBe('')
    expect((await inRoom('cat /proc/*/environ | grep -ac MARK=')).stdout).toBe('0\n')
    expect((await inRoom('ls /proc | grep -c "^[0-9]"')).stdout).toMatch(/^\d\n$/)
    expect((await inRoom('sort /proc/net/dev | grep -c :')).stdout).toBe('1\n')
    expect((await inRoom('grep -E "^(Cap(Eff|Bnd)|NoNewPrivs)" /proc/self/status')).stdout).toBe(
      'CapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nNoNewPrivs:\t1\n',
    )
    expect((await inRoom('unshare -Ur true || echo none; touch /x /usr/x || echo read-only')).stdout).toBe(
      'none\nread-only\n',
    )
    await inRoom('echo made > made.txt')
    expect((await exec('cat state/workspace/made.txt')).stdout).toBe('made\n')
  })

  test('A11: the folder that plugins are loaded from cannot be made in the room', async () => {
    const { stdout } = await inRoom('mkdir .openclaw/x; mv .openclaw y; rm -rf .openclaw; ls -A .openclaw; ls -d y')
    expect(stdout).toBe('')
    expect((await exec('ls -A state/workspace/.openclaw')).stdout).toBe('.keep\n')
  })

  test('the room comes back when its agent ends it, and its programs end with their caller', async () => {
    await inRoom('kill -9 -1')
    await isThere()
    await inRoom('sleep 7777', 'timeout 1')
    await until('the end of its program', async () => (await inRoom('ps ax | grep -c "[s]leep 7777"')).stdout === '0\n')
  })

  test('A7: what runs in the room counts as processes of the agent', async () => {
    const count = async () => (await host.driver.measure(id, within())).processes ?? 0
    const before = await count()
    await inRoom('for i in 1 2 3 4 5 6 7 8 9; do setsid sleep 20 >/dev/null 2>&1 </dev/null & done')
    expect((await count()) - before).toBeGreaterThan(7)
  })

  test('a link in the place of its socket is not followed', async () => {
    await exec('ln -sf /dev/log room/exec.sock')
    expect(await inRoom('true')).toMatchObject({ exitCode: 255, stderr: expect.stringContaining('no socket') })
  })

  test('everything in the room ends with the gateway', async () => {
    await exec('rm room/exec.sock')
    await host.driver.stop(id, { graceMs: 2000 }, within())
    await host.driver.start(id, within())
    await isThere()
    await inRoom('setsid sleep 7778 >/dev/null 2>&1 </dev/null &')
    const isRunning = async () => {
      const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name))
      const lines = await Promise.all(pids.map((pid) => readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')))
      return lines.includes('sleep\x007778\0')
    }
    await until('the program in the room', isRunning)
    await host.driver.stop(id, { graceMs: 2000 }, within())
    await until('its end', async () => !(await isRunning()), 2000)
  })
})

describe.runIf(existsSync('/usr/bin/python3'))('the programs around the room of a pod', () => {
  const sandbox = join(import.meta.dirname, '../../../src/sandbox')
  const ended = async (child: ChildProcess) => (await once(child, 'exit'))[0]
  let folder: string
  let socket: string
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'chowder-room-'))
    await mkdir(join(folder, 'home'))
    await mkdir(join(folder, 'room'))
    socket = join(folder, 'room', 'exec.sock')
  })
  afterAll(() => rm(folder, { recursive: true }))

  test('the room works after a SIGTERM, until the gateway has ended and its socket is removed', async () => {
    const room = spawn(join(sandbox, 'kubernetes/image/room.sh'), ['0', '1024', socket, folder], { stdio: 'inherit' })
    const roomEnds = ended(room)
    const ask = async (script: string) => {
      const ssh = spawn(join(sandbox, 'room/room-ssh.py'), ['host', script], { env: { HOME: join(folder, 'home') } })
      const [output] = await Promise.all([text(ssh.stdout), once(ssh, 'exit')])
      return output
    }
    await until('the room', () => existsSync(socket))
    expect(await ask('pwd')).toBe(`${folder}\n`)
    const gateway = 'trap "sleep 1.5; exit 7" TERM; echo ready; while :; do sleep 0.1; done'
    const init = spawn(join(sandbox, 'kubernetes/image/init.sh'), [socket, 'sh', '-c', gateway])
    const initEnds = ended(init)
    await once(init.stdout, 'data')
    room.kill('SIGTERM')
    init.kill('SIGTERM')
    await sleep(1000)
    expect(await ask('echo still here')).toBe('still here\n')
    expect(await initEnds).toBe(7)
    expect(existsSync(socket)).toBe(false)
    expect(await roomEnds).toBe(0)
  })

  test('a program in the room opens no socket of a network, nor a ring that would', async () => {
    const look = `
import ctypes, socket
for name in "AF_INET", "AF_INET6", "AF_NETLINK", "AF_UNIX", "AF_VSOCK":
    try:
        socket.socket(getattr(socket, name), socket.SOCK_DGRAM)
        print(name)
    except OSError:
        pass
system = ctypes.CDLL(None, use_errno=True)
print(system.syscall(425, 8, ctypes.create_string_buffer(200)), ctypes.get_errno())`
    const run = async (argv: [string, ...string[]]) => (await promisify(execFile)(argv[0], argv.slice(1))).stdout
    const alone = ['/usr/bin/python3', '-c', look] as const
    expect(await run(['perl', join(sandbox, 'socket-filter.pl'), '1', ...alone])).toBe('AF_UNIX\n-1 13\n')
    expect(await run(['perl', join(sandbox, 'socket-filter.pl'), '1,2,10,16', ...alone])).toBe(
      'AF_INET\nAF_INET6\nAF_NETLINK\nAF_UNIX\n-1 13\n',
    )
    expect(await run([...alone])).toMatch(/^AF_INET\nAF_INET6\nAF_NETLINK\nAF_UNIX\n/)
  })
})
