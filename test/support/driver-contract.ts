import { randomUUID } from 'node:crypto'
import { text } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import {
  noKeptLimits,
  type Observation,
  SandboxAbsentError,
  type SandboxDriver,
  type SandboxSpec,
  SandboxUnavailableError,
} from '#sandbox/driver.ts'
import { describeFiles } from './files-contract.ts'
import { present } from './present.ts'
import { until } from './until.ts'

/** A driver under test and what its platform needs besides. */
export interface DriverUnderTest {
  driver: SandboxDriver
  /** A gateway that writes the line `starting` and runs until it is ended. */
  command: SandboxSpec['command']
  /** Makes a running gateway end by itself. */
  endGateway(id: string, seen: Observation, code: number): Promise<void>
  /** What tells a running gateway from the one that is started in its place. */
  gatewayOf(id: string, seen: Observation): Promise<unknown>
  /** Has the event loop of a running gateway do this for half a minute, and does not wait for its end. */
  setLoop(id: string, seen: Observation, loop: 'computes' | 'waits' | 'hangs'): Promise<unknown>
  /** Whether `exec` really runs programs. */
  runsPrograms: boolean
  /** Whether the platform keeps limits on this machine. */
  keepsLimits: boolean
  /** Whether it can change them while a sandbox runs: true by default. */
  changesLimits?: boolean
  /** Whether the folder of a sandbox that does not run can be measured: true by default. */
  measuresStopped?: boolean
  /** Whether it counts deleted files that are open: true by default. */
  countsDeleted?: boolean
  close(): Promise<void>
}

const deadlineMs = 45_000
const within = () => AbortSignal.timeout(deadlineMs)
/** A platform needs a moment to begin to tell, and a busy machine to carry it here. */
const streamBeginsMs = 500
const toldWithinMs = 5000

/** The promises of every sandbox driver. */
export function describeDriver(name: string, open: () => Promise<DriverUnderTest>): void {
  describe(`the ${name} driver`, () => {
    let subject: DriverUnderTest
    let driver: SandboxDriver
    const made: string[] = []

    beforeAll(async () => {
      subject = await open()
      driver = subject.driver
    })
    afterAll(async () => {
      for (const id of made) await driver.destroy(id, within())
      await subject.close()
    })

    const specOf = (id: string): SandboxSpec => ({
      id,
      organizationId: randomUUID(),
      release: 'v1',
      command: subject.command,
      env: ({ home }) => ({ HOME: home, PATH: '/usr/bin:/bin', MARK: id }),
      resources: { memoryMb: 512, cpus: 1, pids: 64, diskMb: 0 },
      labels: { installation: 'contract' },
    })
    const created = async () => {
      const id = randomUUID()
      made.push(id)
      await driver.create(specOf(id), within())
      return id
    }
    const started = async () => {
      const id = await created()
      await driver.start(id, within())
      return id
    }
    const listed = async () => {
      const found = new Map<string, Observation['state']>()
      for await (const { id, state } of driver.list(within())) {
        expect(found.has(id)).toBe(false)
        found.set(id, state)
      }
      return found
    }
    const stop = (id: string) => driver.stop(id, { graceMs: 5000 }, within())
    const stateOf = async (id: string) => (await driver.observe(id, within())).state

    test('a sandbox that was never made is absent, and stopping and destroying it does nothing', async () => {
      const id = randomUUID()
      expect(await driver.observe(id, within())).toEqual({
        state: 'absent',
        sandboxId: null,
        endpoint: null,
        paths: null,
      })
      await driver.destroy(id, within())
      await expect(driver.start(id, within())).rejects.toThrow()
      await expect(driver.exec(id, ['true'], { timeoutMs: 1000 }, within())).rejects.toThrow()
      await expect(driver.files(id).read('a', { maxBytes: 1 }, within())).rejects.toThrow(SandboxAbsentError)
      await expect(driver.files(id).list('.', { maxEntries: 1 }, within())).rejects.toThrow(SandboxAbsentError)
      await expect(driver.files(id).stat('.', within())).rejects.toThrow(SandboxAbsentError)
      expect((await listed()).has(id)).toBe(false)
    })

    test('a second create finds the first, stopped or running', async () => {
      const id = await created()
      const first = await driver.observe(id, within())
      expect(first).toMatchObject({ state: 'stopped', endpoint: null, sandboxId: expect.any(String) })
      expect(first.exit).toBeUndefined()
      await driver.files(id).write('kept', Buffer.from('yes'), { mode: 0o600 }, within())
      await driver.create(specOf(id), within())
      expect(await driver.observe(id, within())).toEqual(first)
      await driver.start(id, within())
      await driver.create(specOf(id), within())
      expect(await driver.observe(id, within())).toMatchObject({ state: 'running', paths: first.paths })
      const kept = await driver.files(id).read('kept', { maxBytes: 10 }, within())
      expect(await text(present(kept).content())).toBe('yes')
    })

    test('a second start leaves the gateway running that the first one started', async () => {
      const id = await created()
      await Promise.all([driver.start(id, within()), driver.start(id, within())])
      const first = await driver.observe(id, within())
      expect(first).toMatchObject({ state: 'running', endpoint: expect.anything() })
      const gateway = await subject.gatewayOf(id, first)
      await driver.start(id, within())
      expect(await driver.observe(id, within())).toEqual(first)
      expect(await subject.gatewayOf(id, first)).toEqual(gateway)
    })

    test('stop ends the gateway and keeps the files; a second stop does nothing; start brings it back', async () => {
      const id = await started()
      await driver.files(id).write('memory', Buffer.from('x'), { mode: 0o600 }, within())
      await stop(id)
      await stop(id)
      expect(await driver.observe(id, within())).toMatchObject({ state: 'stopped', endpoint: null })
      expect(await driver.files(id).stat('memory', within())).toMatchObject({ size: 1 })
      await driver.start(id, within())
      expect(await stateOf(id)).toBe('running')
    })

    test('destroy removes a running sandbox and all its files, and can be repeated', async () => {
      const id = await started()
      await driver.files(id).write('memory', Buffer.from('x'), { mode: 0o600 }, within())
      await driver.destroy(id, within())
      await driver.destroy(id, within())
      expect(await stateOf(id)).toBe('absent')
      expect((await listed()).has(id)).toBe(false)
      await driver.create(specOf(id), within())
      expect(await driver.files(id).read('memory', { maxBytes: 10 }, within())).toBeNull()
      expect((await driver.observe(id, within())).exit).toBeUndefined()
    })

    test('the exit code of a gateway that ends by itself is reported until the next start', async () => {
      const id = await started()
      await subject.endGateway(id, await driver.observe(id, within()), 78)
      await until('the end to be seen', async () => (await stateOf(id)) === 'stopped')
      expect((await driver.observe(id, within())).exit).toEqual({ code: 78, oom: false })
      await driver.start(id, within())
      const again = await driver.observe(id, within())
      expect(again.state).toBe('running')
      expect(again.exit).toBeUndefined()
    })

    test('the files and the log of a sandbox whose gateway has ended by itself are read, and written', async () => {
      const id = await started()
      await subject.endGateway(id, await driver.observe(id, within()), 1)
      await until('the end to be seen', async () => (await stateOf(id)) === 'stopped')
      // A connection to a program that has ended with the gateway may be found to be closing: that is an outage.
      const write = () =>
        driver
          .files(id)
          .write('memory', Buffer.from('xy'), {}, within())
          .then(
            () => true,
            (error) => {
              if (error instanceof SandboxUnavailableError) return false
              throw error
            },
          )
      await until('the file to be written', write)
      expect(await driver.files(id).stat('memory', within())).toMatchObject({ size: 2 })
      if (subject.runsPrograms) expect((await driver.readLog(id, { lines: 5 }, within())).lines).not.toEqual([])
      expect(await stateOf(id)).toBe('stopped')
      await driver.start(id, within())
      expect(await driver.files(id).stat('memory', within())).toMatchObject({ size: 2 })
    })

    test('the end of a gateway is told to whoever follows', async ({ skip }) => {
      if (!driver.ends) return skip('this platform does not tell')
      const id = await started()
      const seen = await driver.observe(id, within())
      const left = new AbortController()
      const told = Promise.withResolvers<void>()
      const follow = async (ends: AsyncIterable<string>) => {
        for await (const ended of ends) if (ended === id) told.resolve()
      }
      const following = follow(driver.ends(AbortSignal.any([left.signal, within()]))).catch((error) => {
        told.reject(error)
        throw error
      })
      // They are waited for below, unless the test fails before.
      for (const promise of [following, told.promise]) promise.catch(() => {})
      await sleep(streamBeginsMs)
      const endedAt = performance.now()
      await subject.endGateway(id, seen, 1)
      await told.promise
      expect(performance.now() - endedAt).toBeLessThan(toldWithinMs)
      left.abort(new Error('nobody follows any more'))
      await expect(following).rejects.toThrow('nobody follows any more')
    })

    test('list names every sandbox once, with its state', async () => {
      const [stopped, running] = [await created(), await started()]
      const found = await listed()
      expect([found.get(stopped), found.get(running)]).toEqual(['stopped', 'running'])
    })

    test('the log is the output of all runs, and is read on from where the last reading ended', async () => {
      const id = await started()
      const read = (after?: string, lines = 50) => driver.readLog(id, { lines, after }, within())
      const texts = async (after?: string) => (await read(after)).lines.map(({ text }) => text)
      await until('output', async () => (await texts()).includes('starting'))
      expect((await read(undefined, 1)).lines).toHaveLength(1)
      if (!subject.runsPrograms) return
      await until('all output', async () => (await texts()).includes('ready'))
      const { position, hasGap } = await read(undefined, 0)
      expect([hasGap, await texts(position)]).toEqual([false, []])
      await stop(id)
      await driver.start(id, within())
      await until('the output of the next run', async () => (await texts(position)).includes('ready'))
      const next = await read(position, 1)
      expect(next).toMatchObject({ lines: [{ text: 'starting', isCut: false }], hasGap: false })
      expect(await texts(next.position)).toEqual(['ready'])
      expect((await texts()).slice(-4)).toEqual(['starting', 'ready', 'starting', 'ready'])
    })

    test('nothing is known of the activity, the use and the output of a sandbox that does not exist', async () => {
      const id = randomUUID()
      expect(await driver.activity(id, within())).toBeNull()
      const usage = await driver.measure(id, within())
      expect(new Set(Object.values(usage))).toEqual(new Set([null]))
      if (!subject.runsPrograms) return
      expect(await driver.readLog(id, { lines: 5 }, within())).toMatchObject({ lines: [], rest: null, hasGap: false })
    })

    test('the use of a running sandbox is measured, and of a stopped one not', async () => {
      if (!subject.runsPrograms) return
      const id = await started()
      expect(await driver.measure(id, within())).toEqual({
        since: expect.any(Date),
        memoryBytes: expect.any(Number),
        memoryLimitBytes: expect.toBeOneOf([null, 512 * 1024 * 1024]),
        cpuSeconds: expect.any(Number),
        processes: expect.any(Number),
        diskBytes: expect.any(Number),
      })
      expect(await driver.memoryUse(id, within())).toEqual(expect.any(Number))
      await stop(id)
      expect(await driver.measure(id, within())).toMatchObject({ since: null, memoryBytes: null, processes: null })
      expect(await driver.memoryUse(id, within())).toBeNull()
    })

    test('the limits of a running sandbox are changed without a restart, but not below the memory that it uses', async () => {
      if (!subject.runsPrograms) return
      const id = await started()
      const gateway = await subject.gatewayOf(id, await driver.observe(id, within()))
      const { resources } = specOf(id)
      const limit = (changed: Partial<typeof resources>) => driver.limit(id, { ...resources, ...changed }, within())
      const kept = await limit({ memoryMb: 700, cpus: 0.5, pids: 90 })
      const changes = subject.changesLimits ?? true
      if (!changes) expect(kept).toEqual({ memoryMb: 512, cpus: 1, pids: null, diskMb: null })
      else expect(kept.memoryMb).toBe(subject.keepsLimits ? 700 : null)
      if (subject.keepsLimits && changes) {
        expect(kept).toMatchObject({ memoryMb: 700, cpus: 0.5, pids: 90 })
        expect((await driver.measure(id, within())).memoryLimitBytes).toBe(700 * 1024 * 1024)
        expect(await limit({ memoryMb: 6, pids: 80 })).toMatchObject({ memoryMb: 700, cpus: 1, pids: 80 })
        expect(await limit({ memoryMb: 300 })).toMatchObject({ memoryMb: 300, pids: 64 })
      }
      expect(await subject.gatewayOf(id, await driver.observe(id, within()))).toEqual(gateway)
      await stop(id)
      expect(await limit({})).toEqual(noKeptLimits)
    })

    test('the sizes of folders are measured, whether sandboxes run or not', async () => {
      if (!subject.runsPrograms) return
      const ids = [...((subject.measuresStopped ?? true) ? [await created()] : []), await started()]
      const before = await driver.diskUse([...ids, randomUUID()], within())
      expect([...before.keys()].sort()).toEqual([...ids].sort())
      for (const id of ids) await driver.files(id).write('a', Buffer.alloc(3_000_000, 1), {}, within())
      const after = await driver.diskUse(ids, within())
      for (const id of ids) expect(present(after.get(id)) - present(before.get(id))).toBeGreaterThanOrEqual(2_900_000)
    })

    test('a deleted file counts while a program of the sandbox has it open', async ({ skip }) => {
      if (!subject.runsPrograms || subject.countsDeleted === false) skip('it runs nothing, or does not count them')
      const id = await started()
      const size = async () => present((await driver.diskUse([id], within())).get(id))
      const before = await size()
      const program = `
        open my $file, ">", "gone" or die $!;
        unlink "gone";
        print $file "x" x 64e6;
        until (-e "over") { select undef, undef, undef, 0.1 }`
      const holding = driver.exec(id, ['perl', '-e', program], { timeoutMs: 60_000 }, AbortSignal.timeout(60_000))
      await until('the deleted file to be counted', async () => (await size()) > before + 60e6)
      expect(await size()).toBeLessThan(before + 70e6)
      await driver.files(id).write('over', Buffer.alloc(0), {}, within())
      expect(await holding).toMatchObject({ exitCode: 0 })
      expect(await size()).toBeLessThan(before + 1e6)
    })

    test('the activity of a gateway tells whether its event loop turns, computes, waits for a program or hangs', async () => {
      const leastWork = 0.1
      const id = await created()
      expect(await driver.activity(id, within())).toBeNull()
      await driver.start(id, within())
      const happensTo = async (shown: (switches: number, cpuSeconds: number) => boolean) => {
        const before = await driver.activity(id, within())
        await sleep(1500)
        const after = await driver.activity(id, within())
        return before && after && shown(after.switches - before.switches, after.cpuSeconds - before.cpuSeconds)
      }
      const works = (switches: number, cpuSeconds: number) => switches === 0 && cpuSeconds >= leastWork
      await until('it to turn', () => happensTo((switches) => switches >= 10))
      for (const [loop, shown] of [
        ['computes', works],
        ['waits', works],
        ['hangs', (switches, cpuSeconds) => switches === 0 && cpuSeconds < leastWork],
      ] as const satisfies [string, Parameters<typeof happensTo>[0]][]) {
        await subject.setLoop(id, await driver.observe(id, within()), loop)
        await until(`what it does to be ${loop}`, () => happensTo(shown), 20_000)
        await driver.stop(id, { graceMs: 0 }, within())
        expect(await driver.activity(id, within())).toBeNull()
        await driver.start(id, within())
      }
    }, 120_000)

    describeFiles({
      runsPrograms: () => subject.runsPrograms,
      files: (id) => driver.files(id),
      exec: (id, script, timeoutMs) => driver.exec(id, ['sh', '-c', script], { timeoutMs }, within()),
      created,
      started,
    })

    test('an aborted call ends with its reason and changes nothing', async () => {
      const id = await created()
      const running = await started()
      const reason = new Error('the lease is lost')
      const signal = AbortSignal.abort(reason)
      const files = driver.files(id)
      const other = randomUUID()
      const listing = async () => {
        for await (const _ of driver.list(signal));
      }
      const calls = [
        driver.create(specOf(other), signal),
        driver.start(id, signal),
        driver.stop(running, { graceMs: 0 }, signal),
        driver.destroy(running, signal),
        driver.observe(id, signal),
        driver.readLog(id, { lines: 1 }, signal),
        driver.measure(id, signal),
        driver.limit(running, specOf(id).resources, signal),
        driver.diskUse([id], signal),
        driver.memoryUse(id, signal),
        driver.activity(running, signal),
        driver.exec(running, ['true'], { timeoutMs: 1000 }, signal),
        listing(),
        files.write('x', Buffer.alloc(1), { mode: 0o600 }, signal),
        files.read('x', { maxBytes: 1 }, signal),
        files.list('.', { maxEntries: 1 }, signal),
        files.stat('x', signal),
        files.mkdir('x', signal),
        files.move('x', 'y', { overwrite: true }, signal),
        files.remove('x', { recursive: true }, signal),
      ]
      for (const outcome of await Promise.allSettled(calls)) expect(outcome).toEqual({ status: 'rejected', reason })
      expect([await stateOf(other), await stateOf(id), await stateOf(running)]).toEqual([
        'absent',
        'stopped',
        'running',
      ])
      expect(await files.stat('x', within())).toBeNull()
    })

    test('exec returns the exit code and the output of each stream', async ({ skip }) => {
      if (!subject.runsPrograms) skip('its exec runs nothing')
      const id = await started()
      const exec = (script: string, options = {}) =>
        driver.exec(id, ['sh', '-c', script], { timeoutMs: 10_000, ...options }, within())
      expect(await exec('cat; echo no >&2; exit 3', { stdin: Buffer.from('yes') })).toEqual({
        exitCode: 3,
        stdout: 'yes',
        stderr: 'no\n',
      })
      const paths = (await driver.observe(id, within())).paths
      expect((await exec('pwd; echo $HOME $MARK')).stdout).toBe(`${paths?.home}\n${paths?.home} ${id}\n`)
      expect((await exec('kill -9 $$')).exitCode).toBe(137)
      expect((await exec('yes | head -c 100000', { maxBytes: 1000 })).stdout).toHaveLength(1000)
      expect((await driver.exec(id, ['/no/such/program'], { timeoutMs: 5000 }, within())).exitCode).toBe(127)
    })

    test('exec ends at its deadline with all processes that it started, and returns null', async ({ skip }) => {
      if (!subject.runsPrograms) skip('its exec runs nothing')
      const id = await started()
      const startedAt = performance.now()
      const answer = await driver.exec(id, ['sh', '-c', 'echo begun; sleep 60 & wait'], { timeoutMs: 3000 }, within())
      expect(answer).toEqual({ exitCode: null, stdout: 'begun\n', stderr: '' })
      expect(performance.now() - startedAt).toBeLessThan(14_000)
      expect(await stateOf(id)).toBe('running')
    })
  })
}
