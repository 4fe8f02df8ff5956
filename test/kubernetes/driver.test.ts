import { randomUUID } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { SandboxDriver } from '#sandbox/driver.ts'
import { openFilesOf } from '#sandbox/open-files.ts'
import { contractSpec } from '../support/docker-host.ts'
import { describeDriver } from '../support/driver-contract.ts'
import { namespace, repository, startCluster, type TestCluster } from '../support/kubernetes-cluster.ts'
import { contractSubject, kubernetesDriver } from '../support/kubernetes-host.ts'
import { until } from '../support/until.ts'

const minute = 60_000
const within = () => AbortSignal.timeout(minute)

describe('with a real cluster of one node', () => {
  let cluster: TestCluster

  beforeAll(async () => {
    cluster = await startCluster()
  }, 70 * minute)
  afterAll(() => cluster?.close(), minute)

  describeDriver('kubernetes', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'chowder-kubernetes-'))
    const { chowder } = cluster
    const driver = kubernetesDriver({
      cluster: chowder,
      namespace,
      repository,
      socketFolder: folder,
      installation: randomUUID(),
    })
    return contractSubject(driver, () => rm(folder, { recursive: true }))
  })

  describe('with a second room', () => {
    const room = { folder: 'state/workspace', socketFolder: 'room', place: 'shared/workspace', hidden: '.openclaw' }
    const id = randomUUID()
    let driver: SandboxDriver
    let folder: string
    const exec = (script: string) => driver.exec(id, ['sh', '-c', script], { timeoutMs: 15_000 }, within())
    const inRoom = (script: string) =>
      exec(`HOME=/agent/home/home /opt/chowder/programs/room/room-ssh.py -T host '${script}'`)
    const isThere = () => until('the room', async () => (await inRoom('true')).exitCode === 0, minute)

    beforeAll(async () => {
      folder = await mkdtemp(join(tmpdir(), 'chowder-kubernetes-'))
      const { chowder } = cluster
      driver = kubernetesDriver({
        cluster: chowder,
        namespace,
        repository,
        socketFolder: folder,
        installation: randomUUID(),
      })
      await driver.create(contractSpec(id, { room }), within())
      const write = (path: string, content: string) => driver.files(id).write(path, Buffer.from(content), {}, within())
      await write('room/.keep', '')
      await write('state/workspace/.openclaw/.keep', '')
      await write('state/workspace/note.txt', 'a note')
      await write('state/secret.json', 'the secret of the gateway')
      await driver.start(id, within())
      await isThere()
    }, 3 * minute)
    afterAll(async () => {
      await driver?.destroy(id, within())
      await rm(folder, { recursive: true, force: true })
    }, minute)

    test('A11: it holds the shared folder alone, no process of the gateway, and no way back to it', async () => {
      expect((await inRoom('cat note.txt')).stdout).toBe('a note')
      expect((await exec('cat /agent/home/state/secret.json')).stdout).toBe('the secret of the gateway')
      const search = 'find /agent -type f; grep -rl "the secret of" / --exclude-dir=proc --exclude-dir=sys'
      expect((await inRoom(search)).stdout).toBe('')
      const mark = 'cat /proc/[0-9]*/environ | tr "\\0" "\\n" | grep -c ^MARK='
      expect(Number((await exec(mark)).stdout)).toBeGreaterThan(0)
      expect((await inRoom(mark)).stdout).toBe('0\n')
      await inRoom('echo made > made.txt')
      expect((await exec('cat /agent/home/state/workspace/made.txt')).stdout).toBe('made\n')
      expect((await inRoom('mkdir .openclaw/x; mv .openclaw y; rm -rf .openclaw; ls .openclaw')).stdout).toBe('')
      expect((await exec('ls -A /agent/home/state/workspace/.openclaw')).stdout).toBe('.keep\n')
      await exec('echo hello > /dev/shm/left')
      expect((await inRoom('ls /dev/shm')).stdout).toBe('')
    })

    test('A7: each of its processes opens a bounded number of files, as those of the gateway', async () => {
      const most = String(openFilesOf(contractSpec(id).resources.pids))
      expect((await inRoom('ulimit -n')).stdout).toBe(`${most}\n`)
      const ofGateway = await exec('grep -h "^Max open files" /proc/[1-9]/limits')
      expect(ofGateway.stdout.split('\n')[1]?.split(/\s+/)[4]).toBe(most)
    })

    test('A6: it opens no socket of a network, which the gateway does', async () => {
      const families = '"AF_INET", "AF_INET6", "AF_NETLINK", "AF_UNIX"'
      const open = `import socket
for name in (${families}):
    try:
        socket.socket(getattr(socket, name), socket.SOCK_DGRAM)
        print(name)
    except PermissionError:
        pass`
      await driver.files(id).write('state/workspace/open.py', Buffer.from(open), {}, within())
      expect((await exec('python3 /agent/home/state/workspace/open.py')).stdout.split('\n')).toHaveLength(5)
      expect((await inRoom('python3 open.py')).stdout).toBe('AF_UNIX\n')
      expect((await inRoom('bash -c ": </dev/tcp/127.0.0.1/18790"')).stderr).toMatch(/Permission denied/)
    })

    test('what it uses counts as well', async () => {
      const eating = inRoom('head -c 300m /dev/zero | tail -c 300m | (sleep 8; wc -c)')
      const megabytes = async () => ((await driver.memoryUse(id, within())) ?? 0) / 1024 / 1024
      await until('its memory to be counted', async () => (await megabytes()) > 300)
      await eating
    })

    test(
      'it comes back when its agent ends it, and does not hold up a stop',
      async () => {
        await inRoom('kill -9 -1')
        await isThere()
        expect(await driver.activity(id, within())).not.toBeNull()
        const stoppedAt = performance.now()
        await driver.stop(id, { graceMs: 40_000 }, within())
        expect(performance.now() - stoppedAt).toBeLessThan(20_000)
        await driver.start(id, within())
        await isThere()
      },
      3 * minute,
    )
  })
})
