import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import {
  appendFile,
  link,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  readlink,
  rm,
  stat,
  symlink,
  writeFile,
} from 'node:fs/promises'
import { request } from 'node:http'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { monitorEventLoopDelay } from 'node:perf_hooks'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type Observation, SandboxPathError } from '#sandbox/driver.ts'
import { filesIn } from '#sandbox/home/files.ts'
import { agentUids } from '#sandbox/local/records.ts'
import { type DriverUnderTest, describeDriver } from '../../support/driver-contract.ts'
import { freePort } from '../../support/free-port.ts'
import { hasControlGroups, LocalHost } from '../../support/local-host.ts'
import { outputOf } from '../../support/output-of.ts'
import { present } from '../../support/present.ts'
import { until } from '../../support/until.ts'

const isRoot = process.getuid?.() === 0
const asRoot = test.skipIf(!isRoot)
const within = () => AbortSignal.timeout(20_000)

/** The answers of the gateway of these tests. */
interface Answers {
  '/whoami': { pid: number; uid: number; groups: number[]; cwd: string; umask: number }
  '/env': Record<string, string>
  '/spawn': number
}

/** The body of a gateway's answer. */
async function get({ endpoint }: Observation, path: string): Promise<string> {
  const { kind, ...address } = present(endpoint)
  const asking = request(
    kind === 'unix' ? { socketPath: (address as { path: string }).path, path } : { ...address, path },
  )
  const [answer] = await once(asking.end(), 'response')
  return text(answer)
}

/** Asks a gateway, as soon as it listens. */
const ask = <P extends keyof Answers>(seen: Observation, path: P): Promise<Answers[P]> =>
  until(`an answer to ${path}`, () =>
    get(seen, path).then(
      (answer) => JSON.parse(answer) as Answers[P],
      () => null,
    ),
  )

async function endGateway(seen: Observation, code: number): Promise<void> {
  await ask(seen, '/whoami')
  await get(seen, `/exit/${code}`).catch(() => {}) // it ends instead of answering
}

const isRunning = (pid: number) =>
  readFile(`/proc/${pid}/stat`, 'utf8').then(
    (line) => !/\) [ZX] /.test(line),
    () => false,
  )

const openDriver = (isJailed: boolean) => async (): Promise<DriverUnderTest> => {
  const host = await LocalHost.make({ isJailed })
  return {
    driver: host.driver,
    command: (paths) => host.command(paths),
    endGateway: (_id, seen, code) => endGateway(seen, code),
    gatewayOf: async (_id, seen) => (await ask(seen, '/whoami')).pid,
    async setLoop(_id, seen, loop) {
      await ask(seen, '/whoami')
      void get(seen, `/${loop}`).catch(() => {}) // it is ended meanwhile
    },
    runsPrograms: true,
    keepsLimits: hasControlGroups,
    close: () => host.remove(),
  }
}

describeDriver('local', openDriver(false))
describeDriver('jailed local', openDriver(true))

describe('a local sandbox', () => {
  let host: LocalHost
  const helpers: ChildProcess[] = []

  beforeAll(async () => {
    host = await LocalHost.make()
  })
  afterAll(async () => {
    for (const helper of helpers) helper.kill('SIGKILL')
    await host.remove()
  })

  const created = async (overrides = {}) => {
    const id = randomUUID()
    await host.driver.create(host.specOf(id, overrides), within())
    return id
  }
  const started = async (overrides = {}) => {
    const id = await created(overrides)
    await host.driver.start(id, within())
    return id
  }
  const observe = (id: string) => host.driver.observe(id, within())
  const stop = (id: string, graceMs = 5000) => host.driver.stop(id, { graceMs }, within())
  const listed = async () => {
    const found: { id: string; state: string }[] = []
    for await (const sandbox of host.driver.list(within())) found.push(sandbox)
    return found
  }
  const recordOf = async (id: string) => JSON.parse(await readFile(host.controlFile(id, 'sandbox.json'), 'utf8'))
  const gatewayPid = async (id: string) =>
    Number((await readFile(host.controlFile(id, 'gateway'), 'utf8')).split(' ')[0])
  const helper = (program: string, args: string[], options = {}) => {
    const child = spawn(program, args, { stdio: 'ignore', ...options })
    helpers.push(child)
    return child
  }

  test('outlives the control plane that started it, and the next one reports its exit code', async () => {
    const id = randomUUID()
    const starter = fileURLToPath(new URL('../../support/sandbox-starter.ts', import.meta.url))
    const first = helper(process.execPath, [starter, host.dataDir, id], { stdio: ['ignore', 'pipe', 'inherit'] })
    await once(present(first.stdout), 'data')
    first.kill('SIGKILL')
    await once(first, 'exit')

    const next = LocalHost.on(host.dataDir).driver
    const seen = await next.observe(id, within())
    expect(seen.state).toBe('running')
    const { pid } = await ask(seen, '/whoami')
    await next.start(id, within())
    expect((await ask(await next.observe(id, within()), '/whoami')).pid).toBe(pid)
    await endGateway(seen, 42)
    await until('the end', async () => (await next.observe(id, within())).state === 'stopped')
    expect((await next.observe(id, within())).exit).toEqual({ code: 42, oom: false })
  })

  test('has an unknown exit code when its launcher was killed', async () => {
    const id = await started()
    const launcher = Number((await readFile(host.controlFile(id, 'supervisor'), 'utf8')).split(' ')[0])
    process.kill(launcher, 'SIGKILL')
    await until('the launcher to end', async () => !(await isRunning(launcher)))
    const seen = await observe(id)
    expect(seen.state).toBe('running')
    await endGateway(seen, 3)
    await until('the end', async () => (await observe(id)).state === 'stopped')
    expect((await observe(id)).exit).toEqual({ code: null, oom: false })
    await host.driver.start(id, within())
    expect((await observe(id)).state).toBe('running')
  })

  test('does not run, and kills no process, when the process of its recorded pid started at another time', async () => {
    const id = await started()
    await stop(id)
    const { uid } = await recordOf(id)
    const stranger = helper('sleep', ['300'])
    const ownUser = helper('sleep', ['300'], uid === null ? {} : { uid, gid: uid })
    for (const { pid } of [stranger, ownUser]) {
      await writeFile(host.controlFile(id, 'gateway'), `${pid} 1\n`)
      expect((await observe(id)).state).toBe('stopped')
    }
    await writeFile(host.controlFile(id, 'gateway'), `${stranger.pid} 1\n`)
    await stop(id, 0)
    await host.driver.destroy(id, within())
    expect(await isRunning(present(stranger.pid))).toBe(true)
  })

  asRoot('does not run, and kills nobody, when its recorded process is of another user', async () => {
    const id = await started()
    await stop(id)
    const stranger = helper('sleep', ['300'])
    const startTime = (await readFile(`/proc/${stranger.pid}/stat`, 'utf8')).split(') ')[1]?.split(' ')[19]
    await writeFile(host.controlFile(id, 'gateway'), `${stranger.pid} ${startTime}\n`)
    expect((await observe(id)).state).toBe('stopped')
    await stop(id, 0)
    expect(await isRunning(present(stranger.pid))).toBe(true)
  })

  test('has exactly its own environment, folder and umask, in a session of its own', async () => {
    const id = await started()
    const { env, inside: paths, uid } = await recordOf(id)
    const seen = await observe(id)
    expect(await ask(seen, '/env')).toEqual(env)
    const { pid, ...self } = await ask(seen, '/whoami')
    expect(self).toMatchObject({ cwd: paths.home, umask: 0o077, uid: uid ?? process.getuid?.() })
    if (isRoot) expect(self.groups).toEqual([uid])
    const [, , , session] = (await readFile(`/proc/${pid}/stat`, 'utf8')).split(') ')[1]?.split(' ') ?? []
    expect(Number(session)).toBe(pid)
    expect(pid).toBe(await gatewayPid(id))
    expect(await readFile(`/proc/${pid}/status`, 'utf8')).toMatch(/^NoNewPrivs:\t1$/m)
    const descriptors = await readdir(`/proc/${pid}/fd`)
    const open = await Promise.all(descriptors.map((name) => readlink(`/proc/${pid}/fd/${name}`).catch(() => '')))
    expect(open).toContain(host.controlFile(id, 'gateway.log'))
    expect(open).not.toContain(host.controlFile(id, 'lock'))
  })

  asRoot('has a user and a folder that no other sandbox can enter', async () => {
    const [one, other] = [await started(), await started()]
    const { uid, inside: paths } = await recordOf(one)
    expect(uid).toBeGreaterThanOrEqual(agentUids.first)
    expect(uid).toBeLessThanOrEqual(agentUids.last)
    expect(uid).not.toBe((await recordOf(other)).uid)
    const home = await stat(paths.home)
    expect([home.mode & 0o777, home.uid, home.gid]).toEqual([0o700, uid, uid])
    for (const path of [paths.home, host.controlFile(one, ''), host.controlFile('', '')]) {
      const looked = await host.driver.exec(other, ['ls', path], { timeoutMs: 5000 }, within())
      expect([path, looked.exitCode, looked.stdout]).toEqual([path, 2, ''])
    }
    for (const name of ['sandbox.json', 'gateway', 'supervisor', 'gateway.log']) {
      const script = `cat ${host.controlFile(one, name)} || echo x >> ${host.controlFile(one, name)}`
      const tried = await host.driver.exec(one, ['sh', '-c', script], { timeoutMs: 5000 }, within())
      expect([name, tried.exitCode === 0, tried.stdout]).toEqual([name, false, ''])
    }
  })

  test('ends every process of the gateway when it stops, also those that left its session', async () => {
    const id = await started()
    const left = await ask(await observe(id), '/spawn')
    const inExec = `setsid sh -c 'echo $$ >pid; exec sleep 300' & until [ -s pid ]; do sleep 0.05; done; cat pid`
    const { stdout } = await host.driver.exec(id, ['sh', '-c', inExec], { timeoutMs: 15_000 }, within())
    const escaped = Number(stdout)
    expect([await isRunning(left), await isRunning(escaped)]).toEqual([true, true])
    await stop(id)
    expect([await isRunning(left), await isRunning(escaped)]).toEqual([false, false])
    expect((await observe(id)).exit).toEqual({ code: 0, oom: false })
  })

  asRoot('holds nobody up by stopping all that its user runs, and can be ended', async () => {
    const id = await started()
    const stopAll = `setsid sh -c 'echo $$ >pid; while :; do kill -STOP -1; done' & until [ -s pid ]; do sleep 0.05; done`
    await host.driver.exec(id, ['sh', '-c', stopAll], { timeoutMs: 1000 }, within())
    const lag = monitorEventLoopDelay({ resolution: 10 })
    lag.enable()
    for (let round = 0; round < 20; round += 1) {
      const soon = AbortSignal.timeout(100)
      await host.driver.files(id).write('folder/file', Buffer.from('x'), { mode: 0o600 }, within())
      await Promise.allSettled([
        host.driver.exec(id, ['true'], { timeoutMs: 100 }, soon),
        host.driver.files(id).remove('folder', { recursive: true }, soon),
      ])
    }
    await stop(id, 300)
    lag.disable()
    expect((await observe(id)).state).toBe('stopped')
    expect(lag.max / 1e6).toBeLessThan(5000)
  })

  test('is killed after the grace time when it does not end by itself', async () => {
    const id = await started({ command: (paths: never) => host.command(paths, 'stubborn') })
    await ask(await observe(id), '/whoami')
    const startedAt = performance.now()
    await stop(id, 300)
    expect(performance.now() - startedAt).toBeGreaterThanOrEqual(300)
    expect((await observe(id)).exit).toEqual({ code: 137, oom: false })
  })

  test('throws when a stop is aborted while it waits for the end', async () => {
    const id = await started({ command: (paths: never) => host.command(paths, 'stubborn') })
    await ask(await observe(id), '/whoami')
    const reason = new Error('enough')
    const abort = new AbortController()
    const stopping = host.driver.stop(id, { graceMs: 60_000 }, abort.signal)
    abort.abort(reason)
    await expect(stopping).rejects.toBe(reason)
    expect((await observe(id)).state).toBe('running')
    await stop(id, 0)
  })

  test('ends the processes of an earlier gateway before it starts, also a gateway without a record', async () => {
    const id = await started()
    const orphan = await gatewayPid(id)
    const left = await ask(await observe(id), '/spawn')
    await writeFile(host.controlFile(id, 'gateway'), '') // as if its record had been lost
    await host.driver.start(id, within())
    expect([await isRunning(orphan), await isRunning(left)]).toEqual([false, false])
    expect(await gatewayPid(id)).not.toBe(orphan)
    expect((await ask(await observe(id), '/whoami')).pid).toBe(await gatewayPid(id))
  })

  test('gets another port when a foreign program has taken its own, and refuses to start before', async () => {
    const id = await created()
    const { port } = (await recordOf(id)).inside
    const stranger = createServer().listen(port, '127.0.0.1')
    await once(stranger, 'listening')
    await expect(host.driver.start(id, within())).rejects.toThrow(`port ${port}`)
    await host.driver.create(host.specOf(id), within())
    const seen = await observe(id)
    expect(seen.paths?.port).not.toBe(port)
    await host.driver.start(id, within())
    expect(await ask(await observe(id), '/env')).toMatchObject({ MARK: id })
    expect((await recordOf(id)).command.at(-1)).toBe(String(seen.paths?.port))
    stranger.close()
  })

  // Each starts programs, one after another: that takes a busy machine a minute.
  test('shares neither user nor port with any of fifty that are made at once, and frees both', {
    timeout: 180_000,
  }, async () => {
    const ids = await Promise.all(Array.from({ length: 50 }, () => created()))
    const records = await Promise.all(ids.map(recordOf))
    expect(new Set(records.map(({ inside: paths }) => paths.port)).size).toBe(50)
    if (isRoot) expect(new Set(records.map(({ uid }) => uid)).size).toBe(50)
    await Promise.all(ids.map((id) => host.driver.destroy(id, within())))
    const held = await readdir(join(host.dataDir, 'ports'))
    expect(held.filter((port) => records.some(({ inside: paths }) => String(paths.port) === port))).toEqual([])
  })

  test('is one sandbox after two concurrent creates', async () => {
    const id = randomUUID()
    await Promise.all(Array.from({ length: 5 }, () => host.driver.create(host.specOf(id), within())))
    const { uid, inside: paths } = await recordOf(id)
    const heldIn = async (folder: string) => {
      const names = await readdir(join(host.dataDir, folder)).catch(() => [])
      const holders = await Promise.all(names.map((name) => readlink(join(host.dataDir, folder, name))))
      return names.filter((_, index) => holders[index] === id)
    }
    expect(await heldIn('ports')).toEqual([String(paths.port)])
    expect(await heldIn('uids')).toEqual(isRoot ? [String(uid)] : [])
  })

  asRoot('owns its files again after they were restored from a copy without owners', async () => {
    const id = await created()
    const files = host.driver.files(id)
    await files.write('state/notes.txt', Buffer.from('mine'), { mode: 0o600 }, within())
    const { uid, home } = { ...(await recordOf(id)), home: host.controlFile(id, 'home') }
    await promisify(execFile)('chown', ['-R', '0:0', home])
    await host.driver.create(host.specOf(id), within())
    const owners = await Promise.all(
      ['', 'state', 'state/notes.txt'].map(async (path) => (await stat(join(home, path))).uid),
    )
    expect(owners).toEqual([uid, uid, uid])
  })

  test('is listed, completed by another create, or destroyed after a killed create', async () => {
    const [completed, destroyed] = [randomUUID(), randomUUID()]
    // Outside of the range, so that no other sandbox has them.
    const uids = { [completed]: 19_998, [destroyed]: 19_999 }
    const [port, otherPort] = [await freePort(), await freePort()]
    const reserve = async (folder: string, number: number, id: string) => {
      await mkdir(join(host.dataDir, folder), { recursive: true })
      await symlink(id, join(host.dataDir, folder, String(number)))
    }
    for (const [id, ownPort] of [
      [completed, port],
      [destroyed, otherPort],
    ] as const) {
      await mkdir(host.controlFile(id, ''))
      await reserve('ports', ownPort, id)
      if (isRoot) await reserve('uids', present(uids[id]), id)
    }
    expect(await listed()).toContainEqual({ id: completed, state: 'stopped' })
    await host.driver.create(host.specOf(completed), within())
    await host.driver.start(completed, within())
    expect(await recordOf(completed)).toMatchObject({ inside: { port }, uid: isRoot ? uids[completed] : null })
    await host.driver.destroy(destroyed, within())
    expect((await listed()).map(({ id }) => id)).not.toContain(destroyed)
    expect(await readdir(join(host.dataDir, 'ports'))).not.toContain(String(otherPort))
    if (isRoot) expect(await readdir(join(host.dataDir, 'uids'))).not.toContain('19999')
  })

  test('A8: keeps the control plane inside its folder, with any link that its agent makes', async () => {
    const id = await started()
    const secret = join(host.dataDir, 'secret')
    await writeFile(secret, 'secret', { mode: 0o600 })
    const { inside: paths } = await recordOf(id)
    const plant = `ln -s ${secret} file; ln -s ${host.dataDir} folder; ln -s . self; mkfifo pipe; mkdir real`
    expect((await host.driver.exec(id, ['sh', '-c', plant], { timeoutMs: 5000 }, within())).exitCode).toBe(0)
    const files = host.driver.files(id)
    const one = { maxBytes: 1000 }
    const refused = [
      files.read('file', one, within()),
      files.read('folder/secret', one, within()),
      files.read('self/file', one, within()),
      files.read('pipe', one, within()),
      files.list('folder', { maxEntries: 10 }, within()),
      files.stat('folder/secret', within()),
      files.write('folder/new', Buffer.from('x'), { mode: 0o600 }, within()),
      files.remove('folder/secret', { recursive: true }, within()),
      files.move('folder/secret', 'real/stolen', { overwrite: true }, within()),
      files.move('real', 'folder/real', { overwrite: true }, within()),
    ]
    for (const outcome of await Promise.allSettled(refused)) {
      expect(outcome).toMatchObject({ status: 'rejected', reason: expect.any(SandboxPathError) })
    }
    await expect(
      host.driver.exec(id, ['ls'], { timeoutMs: 5000, cwd: `${paths.home}/folder` }, within()),
    ).rejects.toThrow(SandboxPathError)
    expect((await files.stat('file', within()))?.kind).toBe('link')

    await files.write('file', Buffer.from('mine'), { mode: 0o600 }, within())
    await files.remove('folder', { recursive: true }, within())
    expect(await readFile(secret, 'utf8')).toBe('secret')
    expect(await text(present(await files.read('file', one, within())).content())).toBe('mine')
    await host.driver.destroy(id, within())
    expect(await readFile(secret, 'utf8')).toBe('secret')
  })

  asRoot('is not read through a hard link to the file of another user', async () => {
    const id = await created()
    await writeFile(join(host.dataDir, 'linked'), 'secret', { mode: 0o600 })
    await link(join(host.dataDir, 'linked'), host.controlFile(id, 'home/linked'))
    await expect(host.driver.files(id).read('linked', { maxBytes: 100 }, within())).rejects.toThrow(SandboxPathError)
  })

  asRoot('has devices and sockets refused at once, and replaced only by name', async () => {
    const id = await created()
    const home = host.controlFile(id, 'home')
    await once(helper('mknod', [join(home, 'device'), 'c', '1', '5']), 'exit')
    const listener = createServer().listen(join(home, 'socket'))
    await once(listener, 'listening')
    const files = host.driver.files(id)
    for (const name of ['device', 'socket']) {
      const refused = [
        files.read(name, { maxBytes: 10 }, within()),
        files.list(name, { maxEntries: 10 }, within()),
        files.write(`${name}/x`, Buffer.from('x'), {}, within()),
      ]
      for (const outcome of await Promise.allSettled(refused)) {
        expect(outcome).toMatchObject({
          status: 'rejected',
          reason: { fault: expect.stringMatching(/^(special|not_directory)$/) },
        })
      }
      expect(await files.stat(name, within())).toMatchObject({ kind: 'other' })
      await files.write(name, Buffer.from('mine'), {}, within())
      expect(await files.stat(name, within())).toMatchObject({ kind: 'file', size: 4 })
    }
    listener.close()
  })

  test('A8: stays confined while a running agent swaps a folder for a link again and again', async () => {
    const id = await started()
    await mkdir(join(host.dataDir, 'outside'), { recursive: true })
    const swap = `mkdir a; while :; do mv a b; ln -s ${host.dataDir}/outside a; rm a; mv b a; done`
    const swapping = host.driver.exec(id, ['sh', '-c', swap], { timeoutMs: 1500 }, within())
    const files = host.driver.files(id)
    let written = 0
    while (written < 200) {
      const end = await Promise.race([swapping, null])
      if (end) break
      await files.write('a/x/file', Buffer.from('x'), { mode: 0o600 }, within()).then(
        () => written++,
        (error) => expect(error).toBeInstanceOf(SandboxPathError),
      )
      await files
        .remove('a/x', { recursive: true }, within())
        .catch((error) => expect(error).toBeInstanceOf(SandboxPathError))
    }
    expect(written).toBeGreaterThan(0)
    expect(await readdir(join(host.dataDir, 'outside'))).toEqual([])
    await stop(id, 0)
  })

  asRoot('owns the files that are written for it', async () => {
    const id = await created()
    await host.driver.files(id).write('a/b', Buffer.from('x'), { mode: 0o600 }, within())
    const { uid } = await recordOf(id)
    for (const [name, mode] of [
      ['a', 0o700],
      ['a/b', 0o600],
    ] as const) {
      const seen = await stat(host.controlFile(id, `home/${name}`))
      expect([name, seen.uid, seen.gid, seen.mode & 0o777]).toEqual([name, uid, uid, mode])
    }
  })

  test('is destroyed also when its folders are nested deeper than the longest path', async () => {
    const id = await created()
    const nest = `for i in $(seq 200); do mkdir ${'d'.repeat(200)} && cd ${'d'.repeat(200)} || exit 1; done`
    const nested = await host.driver.exec(id, ['bash', '-c', nest], { timeoutMs: 15_000 }, within())
    expect(nested).toMatchObject({ exitCode: 0 })
    await host.driver.destroy(id, within())
    expect((await observe(id)).state).toBe('absent')
  })

  test('keeps its log small while it runs', async () => {
    const id = await started()
    await until('output', async () => (await outputOf(host.driver, id)).includes('ready'))
    await appendFile(host.controlFile(id, 'gateway.log'), `${'x'.repeat(6 * 1024 * 1024)}\nlast line\n`)
    await observe(id)
    expect((await stat(host.controlFile(id, 'gateway.log'))).size).toBe(0)
    expect((await stat(host.controlFile(id, 'gateway.log.1'))).size).toBe(5 * 1024 * 1024)
    expect(await outputOf(host.driver, id, 1)).toBe('last line')
    expect((await outputOf(host.driver, id, 10_000)).length).toBeLessThanOrEqual(1024 * 1024)
    await appendFile(host.controlFile(id, 'gateway.log'), 'and on\n')
    expect(await outputOf(host.driver, id, 2)).toBe('last line\nand on')
  })

  test('is read on from a position, also past a line of some MB, and with a gap after its log was shortened', async () => {
    const id = await started()
    await until('output', async () => (await outputOf(host.driver, id)).includes('ready'))
    const log = host.controlFile(id, 'gateway.log')
    const read = (after?: string, lines = 10) => host.driver.readLog(id, { lines, after }, within())
    const { position } = await read()
    await appendFile(log, 'é one\r\ntwo\nth')
    const first = await read(position, 1)
    expect(first).toMatchObject({ lines: [{ text: 'é one', isCut: false }], rest: null, hasGap: false })
    const second = await read(first.position)
    expect(second).toMatchObject({ lines: [{ text: 'two' }], rest: { text: 'th' } })
    expect(await read(second.position)).toEqual({ ...second, lines: [] })
    await appendFile(log, `ree\n${'é'.repeat(1024 * 1024)}\nafter it\n`)
    const third = await read(second.position)
    expect(third.lines).toEqual([{ text: 'three', isCut: false }])
    const fourth = await read(third.position)
    expect(fourth.lines).toEqual([
      { text: 'é'.repeat(8192), isCut: true },
      { text: 'after it', isCut: false },
    ])
    await appendFile(log, 'x\n'.repeat(2.5 * 1024 * 1024))
    await observe(id)
    await appendFile(log, 'begun anew\n')
    const fifth = await read(fourth.position)
    expect(fifth).toMatchObject({ lines: [{ text: 'begun anew' }], hasGap: true })
    expect(await read(fifth.position)).toMatchObject({ lines: [], hasGap: false })
  })

  asRoot('is measured with a deleted file that a program has only mapped', async () => {
    const id = await started()
    const mapped = `
import ctypes, os, time
file = os.open("gone", os.O_RDWR | os.O_CREAT)
os.unlink("gone")
for _ in range(64): os.write(file, b"x" * 1000000)
ctypes.CDLL(None).mmap(None, ctypes.c_size_t(64000000), 1, 1, file, ctypes.c_long(0))
os.close(file)
while not os.path.exists("over"): time.sleep(0.1)`
    const holding = host.driver.exec(id, ['python3', '-c', mapped], { timeoutMs: 20_000 }, within())
    const size = async () => present((await host.driver.diskUse([id], within())).get(id))
    await until('the file to be counted', async () => (await size()) > 64e6)
    expect((await host.driver.measure(id, within())).diskBytes).toBeGreaterThan(64e6)
    await host.driver.files(id).write('over', Buffer.alloc(0), {}, within())
    expect(await holding).toMatchObject({ exitCode: 0 })
    expect(await size()).toBeLessThan(1e6)
  })

  test('is measured with all its processes, and what has ended is not known', async () => {
    const id = await started()
    // Until the launcher has become the gateway, it is a small shell.
    const idle = await until('the gateway to be measured', async () => {
      const usage = await host.driver.measure(id, within())
      return (usage.memoryBytes ?? 0) > 5_000_000 && usage.processes === 1 && usage
    })
    expect(Math.abs(Date.now() - Number(idle.since))).toBeLessThan(60_000)
    expect(idle).toMatchObject({
      memoryLimitBytes: hasControlGroups ? 512 * 1024 * 1024 : null,
      processes: 1,
      cpuSeconds: expect.any(Number),
    })
    expect(idle.diskBytes).toBeGreaterThan(0)
    const burn = 'while(process.cpuUsage().user<6e5);setInterval(()=>{},1000)'
    const node = present((await observe(id)).paths?.node)
    const busy = host.driver.exec(id, [node, '-e', burn], { timeoutMs: 20_000 }, within()).catch(() => {})
    const more = await until('the work to be measured', async () => {
      const usage = await host.driver.measure(id, within())
      return (usage.cpuSeconds ?? 0) >= (idle.cpuSeconds ?? 0) + 0.5 && usage
    })
    expect(more.processes).toBeGreaterThan(1)
    expect(more.memoryBytes).toBeGreaterThan(idle.memoryBytes ?? 0)
    await host.driver.stop(id, { graceMs: 2000 }, within())
    await busy
    expect(await host.driver.measure(id, within())).toMatchObject({ since: null, memoryBytes: null, processes: null })
  })

  test('has no secrets in its record, which only the control plane can read', async () => {
    const id = await created()
    const path = host.controlFile(id, 'sandbox.json')
    expect((await stat(path)).mode & 0o777).toBe(0o600)
    expect(Object.keys(await recordOf(id)).sort()).toEqual(
      ['command', 'env', 'id', 'inside', 'labels', 'organizationId', 'release', 'resources', 'uid'].sort(),
    )
  })

  test.skipIf(!existsSync('/dev/shm'))('shows files with a time beyond any Date, and reads them', async () => {
    const home = await mkdtemp('/dev/shm/chowder-times-') // its file system takes any time
    try {
      await writeFile(join(home, 'far'), 'x')
      await promisify(execFile)('touch', ['-d', '@99999999999999', join(home, 'far')])
      const files = filesIn(async () => ({ path: home, uid: null, uploads: home }))
      const { entries } = await files.list('.', { maxEntries: 10 }, within())
      expect(entries.map(({ modifiedAt }) => modifiedAt.toISOString())).toEqual(['+275760-09-13T00:00:00.000Z'])
      const file = await files.read('far', { maxBytes: 1 }, within())
      expect(file?.modifiedAt).toEqual(entries[0]?.modifiedAt)
      await file?.close()
    } finally {
      await rm(home, { recursive: true })
    }
  })

  test('stops at the same time as all others', async () => {
    const own = await LocalHost.make()
    const ids = [randomUUID(), randomUUID(), randomUUID()]
    for (const id of ids) {
      await own.driver.create(own.specOf(id), within())
      await own.driver.start(id, within())
    }
    await own.driver.stopAll({ graceMs: 5000 }, within())
    for (const id of ids) expect((await own.driver.observe(id, within())).state).toBe('stopped')
    await own.remove()
  })
})
