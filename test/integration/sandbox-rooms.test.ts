import { randomUUID } from 'node:crypto'
import { existsSync } from 'node:fs'
import { readdir, readFile } from 'node:fs/promises'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { LocalHost } from '../support/local-host.ts'
import { until } from '../support/until.ts'

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
