import { execFile } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { mkdir, mkdtemp, readFile, rm, stat, symlink } from 'node:fs/promises'
import { request } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { Observation } from '#sandbox/driver.ts'
import { createJail, jailFault } from '#sandbox/local/jail.ts'
import { waysOutFolder } from '#sandbox/local/way-out.ts'
import { type Attack, got, runAttacks } from '../../support/jail-attacks.ts'
import { LocalHost, outPort } from '../../support/local-host.ts'
import { present } from '../../support/present.ts'
import { until } from '../../support/until.ts'

const run = promisify(execFile)
const isRoot = process.getuid?.() === 0
const within = () => AbortSignal.timeout(30_000)
/** An ordinary user, who need not have a name. */
const ordinaryUid = 31_337
const clone = join(import.meta.dirname, '../../..')

/** Runs Node.js as an ordinary user, who sees this clone at a path that everybody may enter. Returns what it prints. */
async function asOrdinaryUser<T>(...args: string[]): Promise<T> {
  const place = await mkdtemp(join(tmpdir(), 'chowder-clone-'))
  try {
    await run('chmod', ['755', place])
    const asUser = `mount --bind "$1" "$2" && cd "$2" && uid=$3 && shift 3 && \\
      exec setpriv --reuid=$uid --regid=$uid --clear-groups -- node_modules/.bin/node "$@"`
    const options = { timeout: 90_000, env: { PATH: '/usr/bin:/bin:/usr/sbin:/sbin', TMPDIR: '/tmp' } }
    const argv = ['--mount', 'sh', '-c', asUser, 'sh', clone, place, String(ordinaryUid), ...args]
    return JSON.parse((await run('unshare', argv, options)).stdout)
  } finally {
    await rm(place, { recursive: true })
  }
}

function expectRefusals(attacks: readonly Attack[]): void {
  expect(attacks.length).toBeGreaterThan(20)
  const names = (found: readonly Attack[]) => found.map(({ name, outside, inJail }) => ({ name, outside, inJail }))
  expect(names(attacks.filter(({ inJail }) => inJail.includes(got)))).toEqual([])
  // Else the refusals say nothing.
  expect(names(attacks.filter(({ succeedsOutside, outside }) => succeedsOutside && !outside.includes(got)))).toEqual([])
}

describe('A6, A11: what an agent in a jail reaches of this machine and of other agents', () => {
  test.skipIf(!isRoot)('is nothing, under root', { timeout: 120_000 }, async () => {
    expectRefusals(await runAttacks())
  })

  test('is nothing, under an ordinary user', { timeout: 120_000 }, async () => {
    expectRefusals(isRoot ? await asOrdinaryUser('test/support/jail-attacker.ts') : await runAttacks())
  })
})

test.skipIf(!isRoot)('T1: jails of an ordinary user share its limits, and are for one organization', async () => {
  const described = `
    import { LocalHost } from './test/support/local-host.ts'
    const host = await LocalHost.make({ isJailed: true })
    const { isolation, isForOneOrganization, isExposed } = host.driver
    console.log(JSON.stringify({ isolation, isForOneOrganization, isExposed }))
    await host.remove()`
  expect(await asOrdinaryUser('--input-type=module', '-e', described)).toEqual({
    isolation: expect.stringMatching(/isolated in a jail: .* share the kernel’s limits of that user/),
    isForOneOrganization: true,
    isExposed: false,
  })
  const host = await LocalHost.make({ isJailed: true })
  try {
    expect(host.driver.isForOneOrganization).toBe(false)
    expect(host.driver.isolation).not.toContain('share')
  } finally {
    await host.remove()
  }
})

describe('a jail', () => {
  let host: LocalHost

  beforeAll(async () => {
    host = await LocalHost.make({ isJailed: true })
  })
  afterAll(() => host.remove())

  const started = async (...manner: string[]) => {
    const id = randomUUID()
    await host.driver.create(host.specOf(id, { command: (paths) => host.command(paths, ...manner) }), within())
    await host.driver.start(id, within())
    return id
  }
  const shell = (id: string, command: string) =>
    host.driver.exec(id, ['sh', '-c', command], { timeoutMs: 10_000 }, within())
  const observe = (id: string) => host.driver.observe(id, within())
  const stop = (id: string, graceMs = 5000) => host.driver.stop(id, { graceMs }, within())

  function get({ endpoint }: Observation, path: string): Promise<string | null> {
    if (endpoint?.kind !== 'unix') throw new Error('a gateway in a jail is reached at a unix socket')
    const asking = request({ socketPath: endpoint.path, path, agent: false })
    return new Promise((resolve) => {
      asking.on('response', (answer) => resolve(text(answer)))
      asking.on('error', () => resolve(null))
      asking.end()
    })
  }
  const envOf = async (id: string) =>
    JSON.parse(await until('an answer', async () => get(await observe(id), '/env'))) as Record<string, string>

  test('shows all but the home read-only, also with a data folder that a link leads to', async () => {
    const link = `${host.dataDir}-linked`
    await symlink(host.dataDir, link)
    const linked = LocalHost.on(link, { isJailed: true })
    const id = randomUUID()
    await linked.driver.create(linked.specOf(id), within())
    await linked.driver.start(id, within())
    const argv = ['cat', '/proc/self/mountinfo']
    const { stdout } = await linked.driver.exec(id, argv, { timeoutMs: 10_000 }, within())
    await linked.driver.destroy(id, within())
    await rm(link)
    const mounts = stdout.split('\n').filter(Boolean)
    const devices = /^\/dev\/(shm|pts|null|zero|full|u?random|tty)$/
    const seen = mounts.map((line) => {
      const [, , , , path = '', options = ''] = line.split(' ')
      return { path, options: options.split(',') }
    })
    const shown = seen.filter(({ path }) => !devices.test(path))
    const pathsWith = (option: string) =>
      shown.filter(({ options }) => options.includes(option)).map(({ path }) => path)
    const home = join(host.dataDir, 'sandboxes', id, 'home')
    expect(pathsWith('rw').sort()).toEqual(['/proc', '/run', '/tmp', home].sort())
    expect(pathsWith('ro')).toContain(join(host.dataDir, 'releases'))
    expect([pathsWith('nosuid').length, pathsWith('nodev').length]).toEqual([shown.length, shown.length])
  })

  /** The processes of this host whose command lines have a word. */
  const processesWith = async (word: string) => {
    const { stdout } = await run('ps', ['-eo', 'args'])
    return stdout.split('\n').filter((line) => line.includes(word) && !line.includes('ps -eo'))
  }

  test('lets through what an agent needs: its folder, its /tmp, programs, its gateway, the services of its ways out', async () => {
    const id = await started()
    const out = await host.driver.serveJails('out', (sandboxId, socket) => socket.end(`you are ${sandboxId}\n`))
    const asked = await shell(
      id,
      `exec 3<>/dev/tcp/127.0.0.1/${outPort}; cat <&3`.replace(/^/, 'bash -c "').concat('"'),
    )
    expect(asked.stdout).toBe(`you are ${id}\n`)
    const { home = '', node = '' } = present((await observe(id)).paths)
    const used = await shell(
      id,
      `pwd; echo a >file && cat file; echo b >/tmp/x && cat /tmp/x; ${node} -p 1+1; id -u; id -un; git --version >/dev/null; ` +
        `script -qec 'test -t 0 && echo terminal' /dev/null`,
    )
    const uid = JSON.parse(await readFile(host.controlFile(id, 'sandbox.json'), 'utf8')).uid ?? process.getuid?.()
    expect(used.stdout.replaceAll('\r', '').split('\n')).toEqual([
      home,
      'a',
      'b',
      '2',
      `${uid}`,
      'agent',
      'terminal',
      '',
    ])
    expect((await stat(host.controlFile(id, 'home/file'))).uid).toBe(uid)
    await out.close()
  })

  test.skipIf(!isRoot)('A6: has ways out that no other user of the host takes', async () => {
    const id = await started()
    const out = await host.driver.serveJails('out', (sandboxId, socket) => socket.end(`you are ${sandboxId}\n`))
    const folder = waysOutFolder(host.dataDir)
    const ask = `use IO::Socket::UNIX; chdir shift; my $to = IO::Socket::UNIX->new(Peer => shift) or die "$!\n";
      print $to "$ARGV[0]\n"; print $to->getline`
    const askAs = async (uid: number, from: string, socket: string) => {
      const as = ['/usr/bin/setpriv', `--reuid=${uid}`, `--regid=${uid}`, '--clear-groups', '--'] as const
      const [program, ...args] = [...as, 'perl', '-e', ask, from, socket, id]
      return run(program, args).then(
        ({ stdout }) => stdout,
        ({ stderr }) => stderr,
      )
    }
    const uidOf = async () => JSON.parse(await readFile(host.controlFile(id, 'sandbox.json'), 'utf8')).uid as number
    expect(await askAs(0, folder, 'out')).toBe(`you are ${id}\n`)
    for (const uid of [ordinaryUid, await uidOf()]) {
      for (const from of [folder, '/']) {
        expect(await askAs(uid, from, join(folder, 'out'))).toBe('Permission denied\n')
      }
    }
    const inJail = `bash -c "exec 3<>/dev/tcp/127.0.0.1/${outPort}; cat <&3"`
    expect((await shell(id, inJail)).stdout).toBe(`you are ${id}\n`)
    // Programs in the jail have nothing open that leads there.
    const leads = await shell(id, 'ls -l /proc/*/cwd /proc/*/fd 2>/dev/null | grep -c sockets/jails')
    expect(leads.stdout).toBe('0\n')
    await out.close()
  })

  test('goes on using a service when another process takes it over, and waits for the next one without any', async () => {
    const id = await started()
    const ask = async () => (await shell(id, `bash -c "exec 3<>/dev/tcp/127.0.0.1/${outPort}; cat <&3"`)).stdout
    const early = ask()
    await sleep(1500) // it finds nobody
    const first = await host.driver.serveJails('out', (_id, socket) => socket.end('first'))
    expect(await early).toBe('first')
    expect(await ask()).toBe('first')
    const second = await LocalHost.on(host.dataDir).driver.serveJails('out', (_id, socket) => socket.end('second'))
    expect(await ask()).toBe('second')
    await first.close()
    expect(await ask()).toBe('second')
    await second.close()
    const late = ask()
    await sleep(1500)
    const third = await host.driver.serveJails('out', (_id, socket) => socket.end('third'))
    expect(await late).toBe('third')
    await third.close()
  })

  test('ends with all of its processes, also those that hide from their gateway', async () => {
    const id = await started('stubborn')
    await envOf(id)
    const word = `outlive-${randomUUID()}`
    // What has not left the session of the command when that ends, ends with it.
    const leave = `HOME=/ setsid -f perl -e '$SIG{TERM} = "IGNORE"; sleep 600' ${word} >/dev/null 2>&1`
    expect(await shell(id, `cd /; ${leave}; sleep 1`)).toMatchObject({ exitCode: 0 })
    await until('the process', async () => (await processesWith(word)).length === 1)
    await stop(id, 500)
    expect(await processesWith(word)).toEqual([])
    expect(await processesWith(id)).toEqual([]) // nothing around the jail either
    expect((await observe(id)).exit).toEqual({ code: 137, oom: false })
  })

  test('keeps its gateway reachable whatever others listen on', async () => {
    const attacker = await started()
    const squat = `perl -MIO::Socket::INET -e 'IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => $_, Listen => 9) for 20000 .. 20100; sleep 20'`
    const squatting = shell(attacker, squat)
    const id = await started()
    expect(await envOf(id)).toMatchObject({ MARK: id })
    await stop(attacker, 0)
    await squatting
    expect(await envOf(id)).toMatchObject({ MARK: id })
  })

  test('is left when jails are switched off, and entered when they are switched on, with the next start', async () => {
    const id = await started()
    const without = LocalHost.on(host.dataDir)
    expect((await without.driver.observe(id, within())).endpoint).toMatchObject({ kind: 'unix' })
    expect((await without.driver.exec(id, ['ls', '/root'], { timeoutMs: 5000 }, within())).exitCode).not.toBe(0)
    await stop(id)
    await without.driver.create(without.specOf(id), within())
    await without.driver.start(id, within())
    const seen = await observe(id)
    expect(seen.endpoint).toMatchObject({ kind: 'tcp', port: seen.paths?.port })
    expect(seen.paths).not.toHaveProperty('proxy')
    await stop(id)
    await host.driver.create(host.specOf(id), within())
    await host.driver.start(id, within())
    expect(await envOf(id)).toMatchObject({ MARK: id })
    expect((await observe(id)).paths).toMatchObject({ port: 18_789, proxy: 'http://127.0.0.1:3128' })
  })

  test('runs a program while its sandbox is stopped, and leaves nothing of it', async () => {
    const id = randomUUID()
    await host.driver.create(host.specOf(id), within())
    const word = `alone-${randomUUID()}`
    const { stdout } = await shell(id, `setsid -f perl -e 'sleep 600' ${word} >/dev/null 2>&1; ls /root; pwd`)
    expect(stdout).toBe(`${host.controlFile(id, 'home')}\n`)
    expect(await processesWith(word)).toEqual([])
  })

  test('is refused with a reason where it cannot be built', async () => {
    const folders = { releases: join(host.dataDir, 'releases'), waysOutFolder: waysOutFolder(host.dataDir) }
    const jail = createJail({ ...folders, node: '/usr/bin/true', waysOut: [] })
    const uid = isRoot ? 20_000 : null
    expect(await jailFault(jail, host.dataDir, uid)).toBeNull()
    expect(await jailFault(jail, '/usr/share/chowder', uid)).toContain('/usr')
    expect(await jailFault(jail, `/${'x'.repeat(100)}`, uid)).toContain('too long')
    const withoutNamespaces = { ...jail, environment: { ...jail.environment, PATH: '/nowhere' } }
    expect(await jailFault(withoutNamespaces, host.dataDir, uid)).toMatch(/./)
    const probes = join(host.dataDir, 'jail-probes')
    await mkdir(probes, { recursive: true })
    expect((await run('ls', [probes])).stdout).toBe('')
  })
})
