import { execFile } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { type AddressInfo, connect } from 'node:net'
import { networkInterfaces } from 'node:os'
import { Readable } from 'node:stream'
import { text } from 'node:stream/consumers'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest'
import { InstallError } from '#errors/install-error.ts'
import { StartupError } from '#errors/startup-error.ts'
import { agentUid } from '#sandbox/container/layout.ts'
import {
  type Observation,
  SandboxAbsentError,
  type SandboxDriver,
  SandboxPathError,
  type SandboxSpec,
  SandboxUnavailableError,
  useFiles,
} from '#sandbox/driver.ts'
import { contractCommand, contractDriver, contractSpec } from '../support/docker-host.ts'
import { startDockerd, type TestDockerd } from '../support/dockerd.ts'
import { outputOf } from '../support/output-of.ts'
import { type Outside, openOutside } from '../support/outside.ts'
import { present } from '../support/present.ts'
import { until } from '../support/until.ts'

const within = (ms = 30_000) => AbortSignal.timeout(ms)
const minute = 60_000
const token = 'the-gateways-token'
const authorization = `Bearer ${token}`

describe('with a dockerd', () => {
  let dockerd: TestDockerd

  beforeAll(async () => {
    dockerd = await startDockerd()
    await contractDriver(dockerd.host, 'image').prepare('v1', () => {}, within(5 * minute))
  }, 15 * minute)
  afterAll(() => dockerd?.close(), minute)

  describe('a sandbox in a container', () => {
    const installation = randomUUID()
    let driver: SandboxDriver
    let image: string
    const made: string[] = []

    beforeAll(async () => {
      driver = contractDriver(dockerd.host, installation)
      image = (await inspect(await created())).Config.Image
    })
    afterAll(async () => {
      for (const id of made) await driver.destroy(id, within())
    }, minute)

    const created = async (overrides: Partial<SandboxSpec> = {}) => {
      const id = randomUUID()
      made.push(id)
      await driver.create(contractSpec(id, overrides), within())
      return id
    }
    const started = async (overrides: Partial<SandboxSpec> = {}) => {
      const id = await created(overrides)
      await driver.start(id, within())
      return id
    }
    const observe = (id: string) => driver.observe(id, within())
    const stop = (id: string, graceMs = 5000) => driver.stop(id, { graceMs }, within())
    const exec = (id: string, script: string) => driver.exec(id, ['sh', '-c', script], { timeoutMs: 15_000 }, within())
    const ended = (id: string) =>
      until('its end', async () => {
        const seen = await observe(id)
        return seen.state === 'stopped' && seen.exit
      })
    const listening = (port: number) =>
      until('the gateway to listen', () =>
        fetch(`http://127.0.0.1:${port}/healthz`).then(
          ({ ok }) => ok,
          () => false,
        ),
      )
    const textOf = async (id: string, path: string, by = driver) => {
      const file = await by.files(id).read(path, { maxBytes: 1000 }, within())
      return file && text(file.content())
    }
    const give = (id: string, path: string, content: string, by = driver) =>
      by.files(id).write(path, Buffer.from(content), {}, within())
    const listed = async (by = driver) => {
      const found: { id: string; state: string }[] = []
      for await (const sandbox of by.list(within())) found.push(sandbox)
      return found
    }
    const inspect = async (id: string) => JSON.parse(await dockerd.docker('inspect', `chowder-${id}`))[0]
    const addressOf = async (id: string) => (await inspect(id)).NetworkSettings.Networks['chowder-test'].IPAddress
    /**
     * Runs a script in a container of the same image that nothing is kept from. Reads the log: `docker run` may end
     * before it has all of the output.
     */
    async function twin(script: string): Promise<string> {
      const id = (await dockerd.docker('run', '--detach', '--user', '0', image, 'sh', '-c', script)).trim()
      try {
        await dockerd.docker('wait', id)
        return await dockerd.docker('logs', id)
      } finally {
        await dockerd.docker('rm', '--force', id)
      }
    }
    const containersOf = async (id: string) =>
      (await dockerd.docker('ps', '-a', '--filter', `label=chowder.instance=${id}`, '--format', '{{.Names}}'))
        .split('\n')
        .filter(Boolean)

    /** What a program finds out about what it may do: limits of cgroups in either version, or `max`. */
    const lookAround = `
      grep -E '^(CapEff|CapBnd|CapPrm|NoNewPrivs|Uid|Seccomp):' /proc/self/status
      cd /sys/fs/cgroup
      echo memory: $(cat memory.max memory/memory.limit_in_bytes 2>/dev/null)
      echo pids: $(cat pids.max pids/pids.max 2>/dev/null)
      echo cpu: $(cat cpu.max cpu/cpu.cfs_quota_us 2>/dev/null)
      (echo x >/written) 2>/dev/null && echo root: writable || echo root: read-only
      ls /run/docker.sock /var/run/docker.sock 2>/dev/null && echo docker: there || echo docker: none`
    const seenIn = (output: string) =>
      Object.fromEntries(
        output
          .trim()
          .split('\n')
          .map((line) => line.split(/:\s+/, 2) as [string, string]),
      )

    describe('with a second room', () => {
      const room = { folder: 'state/workspace', socketFolder: 'room', place: 'shared/workspace', hidden: '.openclaw' }
      const inRoom = (id: string, script: string) =>
        exec(id, `HOME=/agent/home/home /opt/chowder/programs/room/room-ssh.py -T host '${script}'`)
      const containers = (id: string, ...more: string[]) =>
        dockerd.docker(
          'ps',
          '-q',
          ...more,
          '--filter',
          `label=chowder.instance=${id}`,
          '--filter',
          'label=chowder.role=room',
        )
      let id: string

      beforeAll(async () => {
        id = await created({ room })
        const files = driver.files(id)
        const write = (path: string, content: string) => files.write(path, Buffer.from(content), {}, within())
        await write('room/.keep', '')
        await write('state/workspace/.openclaw/.keep', '')
        await write('state/workspace/note.txt', 'a note')
        await write('state/secret.json', 'the secret of the gateway')
        await driver.start(id, within())
        expect((await observe(id)).paths?.room).toEqual({
          ssh: '/opt/chowder/programs/room/room-ssh.py',
          root: '/room',
        })
        await until('the room', async () => (await inRoom(id, 'true')).exitCode === 0)
      }, minute)

      test('A11: it holds the shared folder alone, and no way back to the gateway', async () => {
        expect((await inRoom(id, 'hostname; cat note.txt')).stdout).toBe('room\na note')
        expect((await exec(id, 'cat /agent/home/state/secret.json')).stdout).toBe('the secret of the gateway')
        const found = await inRoom(
          id,
          'find /agent -type f; grep -rl "the secret of" / --exclude-dir=proc --exclude-dir=sys',
        )
        expect(found.stdout).toBe('')
        expect(
          (await inRoom(id, 'cat ../../../agent/home/state/secret.json /proc/*/environ | grep -a MARK')).stdout,
        ).toBe('')
        expect((await inRoom(id, 'sort /proc/net/dev | grep -c :')).stdout).toBe('1\n')
        expect((await inRoom(id, 'id -u; grep -E "^Cap(Eff|Bnd)" /proc/self/status')).stdout).toBe(
          `${agentUid(id)}\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n`,
        )
        await inRoom(id, 'echo made > made.txt')
        expect((await exec(id, 'cat /agent/home/state/workspace/made.txt')).stdout).toBe('made\n')
      })

      test('A11: it cannot make the folder that plugins are loaded from', async () => {
        const { exitCode, stdout } = await inRoom(
          id,
          'mkdir .openclaw/x; mv .openclaw y; rm -rf .openclaw; ls .openclaw',
        )
        expect([exitCode, stdout]).toEqual([0, ''])
        expect((await exec(id, 'ls -A /agent/home/state/workspace/.openclaw')).stdout).toBe('.keep\n')
      })

      test('a link in the place of its socket is not followed', async () => {
        await exec(
          id,
          'cp -a /agent/home/room/exec.sock /tmp 2>/dev/null; ln -sf /tmp/exec.sock /agent/home/room/exec.sock',
        )
        expect(await inRoom(id, 'true')).toMatchObject({ exitCode: 255, stderr: expect.stringContaining('no socket') })
        await dockerd.docker('restart', '-t', '0', `chowder-${id}-room`)
        await until('the room', async () => (await inRoom(id, 'true')).exitCode === 0)
      })

      test('what it uses counts as well', async () => {
        const eating = inRoom(id, 'head -c 300m /dev/zero | tail -c 300m | (sleep 8; wc -c)')
        const megabytes = async () => ((await driver.memoryUse(id, within())) ?? 0) / 1024 / 1024
        await until('its memory to be counted', async () => (await megabytes()) > 300)
        await eating
      })

      test('it comes back when its agent ends it, and its programs end with their caller', async () => {
        await inRoom(id, 'kill -9 -1')
        await until('the room', async () => (await inRoom(id, 'true')).exitCode === 0)
        await exec(id, "HOME=/agent/home/home timeout 1 /opt/chowder/programs/room/room-ssh.py -T host 'sleep 7777'")
        await until(
          'the end of its program',
          async () => (await inRoom(id, 'ps ax | grep -c "[s]leep 7777"')).stdout === '0\n',
        )
      })

      test(
        'it stops with the gateway, starts with it, and is destroyed with it',
        async () => {
          await stop(id, 1000)
          expect(await containers(id)).toBe('')
          await driver.start(id, within())
          await until('the room', async () => (await inRoom(id, 'true')).exitCode === 0)
          await stop(id, 1000)
          await driver.create(contractSpec(id), within())
          expect(await containers(id, '-a')).toBe('')
          await driver.create(contractSpec(id, { room }), within())
          expect(await containers(id, '-a')).not.toBe('')
          await driver.destroy(id, within())
          expect(await containers(id, '-a')).toBe('')
        },
        minute,
      )
    })

    test('has only the rights that its gateway needs, and a container without these limits has more', async () => {
      const id = await started({ resources: { memoryMb: 300, cpus: 0.5, pids: 77, diskMb: 64 } })
      const looked = seenIn((await exec(id, lookAround)).stdout)
      expect(looked).toMatchObject({
        CapEff: '0000000000000000',
        CapBnd: '0000000000000000',
        CapPrm: '0000000000000000',
        NoNewPrivs: '1',
        Uid: Array(4).fill(agentUid(id)).join('\t'),
        Seccomp: '2',
        memory: String(300 * 1024 * 1024),
        pids: '77',
        root: 'read-only',
        docker: 'none',
      })
      expect(looked.cpu).toMatch(/^50000\b/)
      const free = seenIn(await twin(lookAround))
      expect(free).toMatchObject({ NoNewPrivs: '0', Uid: '0\t0\t0\t0', root: 'writable' })
      expect(free.CapEff).not.toBe(looked.CapEff)
      for (const limit of ['memory', 'pids', 'cpu']) expect([limit, free[limit]]).not.toEqual([limit, looked[limit]])
    })

    test('T1: has a user of its own, with a name, so that no other sandbox uses up its share of the kernel', async () => {
      const [id, other] = [await started(), await started()]
      const users = await Promise.all([id, other].map(async (of) => Number((await exec(of, 'id -u')).stdout)))
      expect(users).toEqual([agentUid(id), agentUid(other)])
      expect(users[0]).not.toBe(users[1])
      const watch = `/usr/local/bin/node -e "
        require('node:fs').watch('/tmp').close()
        console.log(require('node:os').userInfo().username)" 2>&1 | grep -oE '^agent|EMFILE' | head -n 1`
      const take = `python3 -c "
import ctypes, os, time
count = 0
while ctypes.CDLL(None).inotify_init() >= 0: count += 1
open('/tmp/taken', 'w').write(str(count))
while not os.path.exists('/tmp/done'): time.sleep(0.1)"`
      const taking = exec(id, take)
      await until('all to be taken', async () => Number((await exec(id, 'cat /tmp/taken')).stdout) > 0)
      expect((await exec(id, watch)).stdout).toBe('EMFILE\n')
      expect((await exec(other, watch)).stdout).toBe('agent\n')
      await exec(id, 'touch /tmp/done')
      await taking
    })

    test('T1: keeps the user that its volume has had before', async () => {
      const id = randomUUID()
      made.push(id)
      const name = `chowder-${id}`
      const known = ['--label', `chowder.installation=${installation}`, '--label', `chowder.instance=${id}`]
      await dockerd.docker('volume', 'create', ...known, '--label', 'chowder.role=sandbox', name)
      const before =
        'mkdir -p /agent/home && echo kept >/agent/home/file && chown -R 10001:10001 /agent && chmod -R go= /agent'
      await dockerd.docker('run', '--rm', '-u', '0', '-v', `${name}:/agent`, image, 'sh', '-c', before)
      await driver.create(contractSpec(id), within())
      expect(await textOf(id, 'file')).toBe('kept\n')
      await driver.start(id, within())
      expect((await exec(id, 'id -u; cat file')).stdout).toBe('10001\nkept\n')
    })

    test('has its own volume, no other mount of this host, and one port on its loopback', async () => {
      const id = await started()
      const { HostConfig, Mounts, NetworkSettings, Config } = await inspect(id)
      expect(Mounts.map(({ Type, Name, Destination }: Record<string, string>) => [Type, Name, Destination])).toEqual([
        ['volume', `chowder-${id}`, '/agent'],
      ])
      expect(Object.keys(NetworkSettings.Ports)).toEqual(['18790/tcp'])
      expect(NetworkSettings.Ports['18790/tcp'].map(({ HostIp }: { HostIp: string }) => HostIp)).toEqual(['127.0.0.1'])
      expect(HostConfig).toMatchObject({
        Privileged: false,
        CapAdd: null,
        Binds: null,
        MemorySwap: HostConfig.Memory,
        RestartPolicy: { Name: 'no' },
        LogConfig: { Type: 'json-file', Config: { 'max-size': '5m', 'max-file': '2' } },
        PidMode: '',
        IpcMode: 'private',
      })
      expect(Config.Labels).toMatchObject({
        'chowder.installation': installation,
        'chowder.instance': id,
        'chowder.organization': 'organization',
        'chowder.label.organization': 'organization',
      })
    })

    describe('on its network', () => {
      let outside: Outside
      const host = createServer((_, answer) => answer.end('host'))
      beforeAll(async () => {
        outside = await openOutside()
        await once(host.listen(0, '0.0.0.0'), 'listening')
      })
      afterAll(async () => {
        host.close()
        host.closeAllConnections()
        await outside?.close()
      })

      const rule = '-i chowder-test -m addrtype --dst-type LOCAL -m conntrack ! --ctstate ESTABLISHED,RELATED -j DROP'
      const iptables = (does: '-C' | '-D') =>
        promisify(execFile)('iptables', ['-t', 'mangle', does, 'PREROUTING', ...rule.split(' ')])

      const get = (address: string, port: number, seconds = 2) =>
        `curl -s -m ${seconds} http://${address}:${port}/healthz || echo refused`

      test('reaches the world, but no service of this host, no metadata service and no other sandbox', async () => {
        const [id, other] = [await started(), await started()]
        const { port } = host.address() as AddressInfo
        const { Gateway } = (await inspect(id)).NetworkSettings.Networks['chowder-test']
        const own = Object.values(networkInterfaces()).flatMap((addresses) => addresses ?? [])
        const hosts = new Set([Gateway, ...own.filter(({ family }) => family === 'IPv4').map(({ address }) => address)])
        expect(hosts.size).toBeGreaterThan(2)
        for (const address of hosts)
          expect([address, (await exec(id, get(address, port))).stdout.trim()]).toEqual([address, 'refused'])
        expect((await exec(id, get(outside.linkLocal, outside.port))).stdout).toBe('refused\n')
        expect((await exec(id, get(await addressOf(other), 18_790))).stdout).toBe('refused\n')
        expect((await exec(id, get(outside.address, outside.port, 20))).stdout).toBe('outside')

        expect(await twin(get(Gateway, port, 20))).toBe('host')
        expect(await twin(get(outside.linkLocal, outside.port, 20))).toBe('outside')
      })

      test(
        'A5: in a network of the control plane it reaches no other host, from its next start on, nor does the relay this host',
        async () => {
          const way = ['--opt', 'com.docker.network.bridge.enable_icc=false']
          const bridge = ['--opt', 'com.docker.network.bridge.name=chowder-way-out']
          await dockerd.docker('network', 'create', ...way, ...bridge, 'chowder-way-out')
          const common = { publishAddress: null, relayUrl: 'http://relay:18790' }
          const open = contractDriver(dockerd.host, installation, { ...common, network: 'chowder-way-out' })
          const egressNetwork = 'chowder-way-out'
          const closed = contractDriver(dockerd.host, installation, { ...common, network: 'chowder-in', egressNetwork })
          const id = randomUUID()
          made.push(id)
          const networks = async () => Object.keys((await inspect(id)).NetworkSettings.Networks)
          const outsideSeen = async () => (await exec(id, get(outside.address, outside.port, 10))).stdout.trim()
          await open.create(contractSpec(id), within())
          await open.start(id, within())
          expect([await networks(), await outsideSeen()]).toEqual([['chowder-way-out'], 'outside'])

          // It is reached where it is, and neither moved nor ended.
          await closed.create(contractSpec(id), within())
          const seen = await closed.observe(id, within())
          expect(seen).toMatchObject({ state: 'running', endpoint: { host: `chowder-${id}`, port: 18_790 } })
          expect([await networks(), seen.paths?.proxy]).toEqual([['chowder-way-out'], undefined])

          await closed.stop(id, { graceMs: 5000 }, within())
          await closed.create(contractSpec(id), within())
          await closed.start(id, within())
          expect([await networks(), await outsideSeen()]).toEqual([['chowder-in'], 'refused'])
          const { paths } = await closed.observe(id, within())
          expect(paths).toMatchObject({ proxy: 'http://relay:18790', proxyAsksWho: true })

          // What asks other hosts for it reaches those alone.
          const { port } = host.address() as AddressInfo
          const byWayOut = (address: string, at: number) =>
            dockerd.docker('run', '--rm', '--network', 'chowder-way-out', image, 'sh', '-c', get(address, at))
          expect(await byWayOut(outside.address, outside.port)).toBe('outside')
          expect(await byWayOut(outside.host, port)).toBe('refused\n')
          expect(await byWayOut(outside.linkLocal, outside.port)).toBe('refused\n')
          expect(await twin(get(outside.host, port, 20))).toBe('host')
        },
        minute,
      )

      test(
        'T15: opens no more connections than the host’s table of connections has room for',
        async () => {
          const [id, other] = [await started(), await started()]
          const connecting = (seconds: number, kept: 'keep' | 'close', most = 100_000) => `python3 -c "
import socket, time
made, end = [], time.time() + ${seconds}
count = 0
while time.time() < end and count < ${most}:
  one = socket.socket()
  one.settimeout(0.2)
  try:
    one.connect(('${outside.address}', ${outside.port}))
    count += 1
    made.append(one) if '${kept}' == 'keep' else one.close()
  except OSError: pass
print(count)"`
          const opened = async (of: string, script: string) => Number((await exec(of, script)).stdout)
          // As an install does.
          expect(await opened(id, connecting(10, 'keep', 300))).toBe(300)
          const [many, beside] = await Promise.all([
            opened(id, connecting(6, 'close')),
            opened(other, connecting(6, 'keep', 300)),
          ])
          expect(beside).toBe(300)
          expect(many).toBeGreaterThan(200)
          expect(many).toBeLessThan(500 + 7 * 50)
          const most = await opened(other, connecting(8, 'keep'))
          expect(most).toBeLessThanOrEqual(512)
          expect(most).toBeGreaterThan(500) // some of the run before may still be in the table
        },
        minute,
      )

      test('does not reach broadcast and multicast listeners of this host', async () => {
        const heard: string[] = []
        const listener = createSocket('udp4').on('message', (message) => heard.push(message.toString()))
        try {
          await once(listener.bind(0, '0.0.0.0'), 'listening')
          const send = (word: string) =>
            `/usr/local/bin/node -e "const s=require('node:dgram').createSocket('udp4');s.bind(()=>{s.setBroadcast(true);s.send('${word}',${listener.address().port},'255.255.255.255',()=>s.close())})"`
          const id = await started()
          expect(await exec(id, send('agent'))).toMatchObject({ exitCode: 0, stderr: '' })
          await twin(send('twin'))
          await until('the twin to be heard', () => heard.length > 0)
          expect(heard).toEqual(['twin'])
        } finally {
          listener.close()
        }
      })

      test('has deleted firewall rules added again at the next start of any sandbox', async () => {
        const id = await created()
        const { port } = host.address() as AddressInfo
        await iptables('-D')
        await expect(iptables('-C')).rejects.toThrow()
        await driver.start(id, within())
        await iptables('-C')
        const { Gateway } = (await inspect(id)).NetworkSettings.Networks['chowder-test']
        expect((await exec(id, get(Gateway, port))).stdout).toBe('refused\n')
      })

      test('S22: has deleted firewall rules added again while it runs', async () => {
        const id = await started()
        const { port } = host.address() as AddressInfo
        expect(await driver.protect?.(within())).toBe(false)
        await iptables('-D')
        expect(await driver.protect?.(within())).toBe(true)
        await iptables('-C')
        const { Gateway } = (await inspect(id)).NetworkSettings.Networks['chowder-test']
        expect((await exec(id, get(Gateway, port))).stdout).toBe('refused\n')
        expect(await driver.protect?.(within())).toBe(false)
      })
    })

    test('has its start remove firewall containers whose maker was killed before it started them', async () => {
      await dockerd.docker('create', '--label', 'chowder.role=firewall', image, 'true')
      const unstarted = () => dockerd.docker('ps', '-aq', '--filter', 'label=chowder.role=firewall')
      await started()
      expect(await unstarted(), 'its maker may be about to').not.toBe('')
      vi.useFakeTimers({ toFake: ['Date'], now: Date.now() + 5 * minute })
      try {
        await started()
      } finally {
        vi.useRealTimers()
      }
      expect(await unstarted()).toBe('')
    })

    test('is not on a network whose containers reach each other', async () => {
      await dockerd.docker('network', 'create', 'chowder-open')
      const open = contractDriver(dockerd.host, installation, { network: 'chowder-open' })
      const id = randomUUID()
      made.push(id)
      await expect(open.create(contractSpec(id), within())).rejects.toThrow(StartupError)
      await dockerd.docker('network', 'rm', 'chowder-open')
    })

    test('is reached at its address by a control plane in its network, on one port only', async () => {
      const near = contractDriver(dockerd.host, installation, { publishAddress: null, network: 'chowder-near' })
      const [id, other] = [randomUUID(), randomUUID()]
      made.push(id, other)
      for (const each of [id, other]) {
        await near.create(contractSpec(each), within())
        await near.start(each, within())
      }
      await give(id, 'token.json', JSON.stringify({ token }))
      const { endpoint } = await near.observe(id, within())
      expect(endpoint).toMatchObject({ kind: 'tcp', port: 18_790 })
      const { host } = endpoint as { host: string }
      expect(host, 'its address may be another’s tomorrow').toBe(`chowder-${id}`)
      expect(JSON.parse(await dockerd.docker('network', 'inspect', 'chowder-near'))[0].Internal).toBe(true)
      expect((await inspect(id)).HostConfig.PortBindings ?? {}).toEqual({})
      const fromControlPlane = (...args: string[]) =>
        dockerd.docker('run', '--rm', '--network', 'chowder-near', image, 'curl', '-s', '-m', '20', ...args)
      await until(
        'the gateway to listen',
        async () => (await fromControlPlane(`http://${host}:18790/healthz`).catch(() => '')) === 'null',
        60_000,
      )
      expect(await fromControlPlane('-H', `authorization: ${authorization}`, `http://${host}:18790/whoami`)).toContain(
        'uid',
      )
      const ipOf = async (of: string) => (await inspect(of)).NetworkSettings.Networks['chowder-near'].IPAddress
      const listen = `require('node:http').createServer((_, answer) => answer.end('mine')).listen(9000)`
      const { paths } = await near.observe(id, within())
      await exec(id, `setsid ${paths?.node} -e "${listen}" >/dev/null 2>&1 &`)
      expect((await exec(other, `curl -s -m 2 http://${host}:9000/ || echo refused`)).stdout).toBe('refused\n')
      // T8: the forwarder asks for a token, and its memory is little.
      const [there, here] = [(await ipOf(id)) ?? '', (await ipOf(other)) ?? '']
      expect((await exec(other, `curl -s -m 4 http://${there}:18790/healthz || echo refused`)).stdout).toBe('refused\n')
      expect((await exec(id, `curl -s -m 4 http://${here}:18790/healthz || echo refused`)).stdout).toBe('refused\n')
      expect(await fromControlPlane(`http://${there}:18790/whoami`)).toContain('forbidden')
      const serve = `require('node:http').createServer((_, answer) => answer.end('relay')).listen(18790)`
      const relay = (
        await dockerd.docker('run', '--detach', '--network', 'chowder-near', image, 'node', '-e', serve)
      ).trim()
      try {
        const { NetworkSettings } = JSON.parse(await dockerd.docker('inspect', relay))[0]
        const at = `http://${NetworkSettings.Networks['chowder-near'].IPAddress}:18790/`
        expect((await exec(other, `curl -s -m 10 --retry 9 --retry-all-errors ${at}`)).stdout).toBe('relay')
      } finally {
        await dockerd.docker('rm', '--force', relay)
      }
      expect(await near.protect?.(within(minute)), 'another look finds nothing to add').toBe(false)
    })

    test('reaches the port of the relay on this host, and no other one', async () => {
      const servers = ['relay', 'other'].map((said) => createServer((_, answer) => answer.end(said)).listen(0))
      try {
        for (const server of servers) if (!server.listening) await once(server, 'listening')
        const [relayPort = 0, other = 0] = servers.map((server) => (server.address() as AddressInfo).port)
        const relayed = contractDriver(dockerd.host, installation, { network: 'chowder-relay', relayPort })
        const address = await relayed.hostAddress?.(within())
        const id = randomUUID()
        made.push(id)
        await relayed.create(contractSpec(id), within())
        await relayed.start(id, within())
        const get = async (port: number) =>
          (
            await relayed.exec(
              id,
              ['sh', '-c', `curl -s -m 3 http://${address}:${port}/ || echo refused`],
              { timeoutMs: 15_000 },
              within(),
            )
          ).stdout.trim()
        expect([await get(relayPort), await get(other)]).toEqual(['relay', 'refused'])
        // Other hosts are reached through the proxy alone: what asks them directly, or for a name, fails at once.
        const run = async (of: SandboxDriver, script: string, name = id) =>
          (await of.exec(name, ['sh', '-c', script], { timeoutMs: 15_000 }, within())).stdout.trim()
        const direct = 'curl -s -m 4 http://192.0.2.1/; echo $?'
        const rejected = '7'
        expect(await run(relayed, direct)).toBe(rejected)
        expect(await run(relayed, 'curl -s -m 4 http://name.example.com/; echo $?')).toBe('6')
        expect((await relayed.observe(id, within())).paths).toMatchObject({
          proxy: `http://${address}:${relayPort}`,
          proxyAsksWho: true,
        })
        const host = ['run', '--rm', '--network', 'host', '--cap-add', 'NET_ADMIN', '--user', '0', image]
        const rules = await dockerd.docker(...host, 'iptables', '-w', '5', '-nvxL', 'DOCKER-USER')
        expect(rules).toMatch(/^ *[1-9]\d* +\d+ +REJECT .* chowder-relay +!chowder-relay /m)
        // Another look finds nothing to add.
        expect(await relayed.protect?.(within(minute))).toBe(false)
      } finally {
        for (const server of servers) server.close()
      }
    })

    test('is published where another machine reaches it, and reaches the relay there and nothing else', async () => {
      // Stands for another machine, in its own network namespace: the address of this one is that of a link to it.
      const relay = await openOutside()
      try {
        const publishAddress = relay.host
        const at = { network: 'chowder-remote', publishAddress, relayUrl: `http://${relay.address}:${relay.port}` }
        const remote = contractDriver(dockerd.host, installation, at)
        const ids = [randomUUID(), randomUUID()]
        made.push(...ids)
        for (const id of ids) {
          await remote.create(contractSpec(id), within())
          await remote.start(id, within())
        }
        const [id = '', other = ''] = ids
        const endpoint = (await remote.observe(other, within())).endpoint as { host: string; port: number }
        expect(endpoint.host).toBe(publishAddress)
        const health = `http://${publishAddress}:${endpoint.port}/healthz`
        const isHealthy = async () => (await fetch(health)).ok
        await until('the gateway', () => isHealthy().catch(() => false))
        const run = async (script: string) =>
          (await remote.exec(id, ['sh', '-c', script], { timeoutMs: 15_000 }, within())).stdout.trim()
        expect(await run(`curl -s -m 10 http://${relay.address}:${relay.port}/`)).toBe('outside')
        expect(await run(`curl -s -m 3 ${health} || echo refused`)).toBe('refused')
        expect(await run('curl -s -m 4 http://192.0.2.1/; echo $?')).toBe('7')
        expect(await run(`curl -s -m 4 http://${relay.address}:1/; echo $?`)).toBe('7')
        expect((await remote.observe(id, within())).paths).toMatchObject({ proxy: at.relayUrl, proxyAsksWho: true })
        expect(await remote.protect?.(within(minute))).toBe(false)
      } finally {
        await relay.close()
      }
    })

    test('lets no request without the token through to its gateway, also on a connection that is kept', async () => {
      const id = await started()
      await give(id, 'token.json', JSON.stringify({ token }))
      const { port } = (await observe(id)).endpoint as { port: number }
      const url = `http://127.0.0.1:${port}`
      await listening(port)
      expect((await fetch(`${url}/whoami`)).status).toBe(403)
      expect((await fetch(`${url}/whoami`, { headers: { authorization: 'Bearer wrong' } })).status).toBe(403)
      const known = await fetch(`${url}/whoami`, { headers: { authorization } })
      expect(await known.json()).toMatchObject({ uid: agentUid(id), cwd: '/agent/home', umask: 0o077 })
      const socket = connect(port, '127.0.0.1')
      socket.write(`GET /whoami HTTP/1.1\r\nhost: x\r\nauthorization: ${authorization}\r\n\r\n`)
      await once(socket, 'data')
      socket.write('GET /exit/3 HTTP/1.1\r\nhost: x\r\n\r\n')
      expect(await text(socket)).toContain('HTTP/1.1 403')
      const upgrade = connect(port, '127.0.0.1')
      upgrade.write('GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n')
      expect(await text(upgrade)).toMatch(/^HTTP\/1.1 403/)
      expect((await observe(id)).state).toBe('running')
      expect(JSON.stringify(await inspect(id))).not.toContain(token)
    })

    test('reports the address of its gateway anew after each start', async () => {
      const id = await started()
      const first = (await observe(id)).endpoint
      await stop(id)
      expect((await observe(id)).endpoint).toBeNull()
      await driver.start(id, within())
      const { port } = (await observe(id)).endpoint as { port: number }
      expect(port).not.toBe((first as { port: number }).port)
      await listening(port)
    })

    test('weighs less than the control plane on busy processors', async () => {
      expect((await inspect(await started())).HostConfig.CpuShares).toBe(512)
    })

    test('that uses too much memory is ended, and reports the reason', async () => {
      const hog = 'const kept = []; setInterval(() => kept.push(Buffer.alloc(32e6, 1)), 20)'
      const id = await started({
        command: ({ node }) => [node, '-e', hog],
        resources: { memoryMb: 200, cpus: 1, pids: 64, diskMb: 0 },
      })
      expect(await ended(id)).toEqual({ code: 137, oom: true })
    })

    test('that is killed from outside is reported as stopped, and can be started again', async () => {
      const id = await started()
      await dockerd.docker('kill', `chowder-${id}`)
      expect(await ended(id)).toEqual({ code: 137, oom: false })
      await driver.start(id, within())
      expect((await observe(id)).state).toBe('running')
    })

    test('is killed after the grace time when it does not end by itself, with all its processes', async () => {
      const id = await started({ command: (paths) => contractCommand(paths, 'stubborn') })
      await until('its start', async () => (await outputOf(driver, id)).includes('ready'))
      await exec(id, 'setsid sleep 300 >/dev/null 2>&1 &')
      const startedAt = performance.now()
      await stop(id, 1000)
      expect(performance.now() - startedAt).toBeGreaterThanOrEqual(1000)
      expect((await observe(id)).exit).toEqual({ code: 137, oom: false })
    })

    test('keeps its files when it is made anew, with another size, command or environment', async () => {
      const id = await started()
      await give(id, 'memory', 'kept')
      await stop(id)
      const before = await observe(id)
      await driver.create(contractSpec(id), within())
      expect(await observe(id)).toEqual(before)
      const changes: Partial<SandboxSpec>[] = [
        { resources: { memoryMb: 600, cpus: 1, pids: 64, diskMb: 0 } },
        { command: (paths) => contractCommand(paths, 'stubborn') },
        { env: ({ home }) => ({ HOME: home, PATH: '/usr/bin:/bin', MARK: 'other' }) },
      ]
      let last = before.sandboxId
      for (const change of changes) {
        await driver.create(contractSpec(id, change), within())
        const now = await observe(id)
        expect(now).toMatchObject({ state: 'stopped' })
        expect(now.sandboxId).not.toBe(last)
        last = now.sandboxId
        expect(await textOf(id, 'memory')).toBe('kept')
      }
      await driver.start(id, within())
      expect((await exec(id, 'cat memory; echo $MARK')).stdout).toBe('keptother\n')
    })

    test('is one sandbox when control planes make, start, stop and destroy it at the same time', async () => {
      const id = randomUUID()
      made.push(id)
      const all = [driver, contractDriver(dockerd.host, installation), contractDriver(dockerd.host, installation)]
      await Promise.all(all.map((each) => each.create(contractSpec(id), within())))
      await Promise.all(all.map((each, index) => give(id, `file-${index}`, String(index), each)))
      expect(await Promise.all(all.map((each, index) => textOf(id, `file-${(index + 1) % 3}`, each)))).toEqual([
        '1',
        '2',
        '0',
      ])
      expect((await containersOf(id)).length).toBe(2)
      await Promise.all(all.map((each) => each.start(id, within())))
      expect((await Promise.all(all.map((each) => each.observe(id, within())))).map(({ state }) => state)).toEqual(
        Array(3).fill('running'),
      )
      await Promise.all(all.map((each) => each.stop(id, { graceMs: 3000 }, within())))
      await Promise.all(all.map((each) => each.destroy(id, within())))
      expect(await containersOf(id)).toEqual([])
      await expect(textOf(id, 'file-0', all[1])).rejects.toThrow(SandboxAbsentError)
    })

    test('has its files read by a container that ends when it is idle', {
      tags: ['long'],
      timeout: 2 * minute,
    }, async () => {
      const id = await created()
      await give(id, 'one', '1')
      const names = await containersOf(id)
      expect(names).toHaveLength(2)
      expect((await listed()).filter((sandbox) => sandbox.id === id)).toEqual([{ id, state: 'stopped' }])
      expect((await observe(id)).state).toBe('stopped')
      const beside = present(names.find((name) => name.includes('files')))
      const { HostConfig, Mounts } = JSON.parse(await dockerd.docker('inspect', beside))[0]
      expect(HostConfig).toMatchObject({
        NetworkMode: 'none',
        CapDrop: ['ALL'],
        ReadonlyRootfs: true,
        AutoRemove: true,
      })
      expect(Mounts.map(({ Name }: { Name: string }) => Name)).toEqual([`chowder-${id}`])
      await driver.start(id, within())
      expect(await textOf(id, 'one')).toBe('1')
      await stop(id)
      await until('the end of the container', async () => (await containersOf(id)).length === 1, 90_000)
      expect(await textOf(id, 'one')).toBe('1')
      await driver.destroy(id, within())
      expect(await containersOf(id)).toEqual([])
      expect(await dockerd.docker('volume', 'ls', '-q', '--filter', `name=chowder-${id}`)).toBe('')
    })

    test('has the calls of a batch carried out by one program, which ends with the batch', async () => {
      const id = await created()
      const programs = async () => {
        const beside = present((await containersOf(id)).find((name) => name.includes('files')))
        return (await dockerd.docker('top', beside)).split('\n').filter((line) => line.includes('files-program')).length
      }
      await useFiles(driver, id, async (files) => {
        await files.write('a/one', Buffer.from('1'), {}, within())
        const file = await files.read('a/one', { maxBytes: 1 }, within())
        expect(await text(present(file).content())).toBe('1')
        expect(await programs()).toBe(1)
        // A refused call is no end of the batch.
        await expect(files.mkdir('../out', within())).rejects.toThrow(SandboxPathError)
        await present(await files.read('a/one', { maxBytes: 1 }, within())).close()
        expect(await files.remove('a', { recursive: true }, within())).toBe(true)
      })
      await until('its end', async () => (await programs()) === 0)
    })

    test('reads and writes files far larger than the memory of their container', async () => {
      const id = await created()
      const size = 700 * 1024 * 1024
      const block = Buffer.alloc(1024 * 1024, 7)
      async function* blocks() {
        for (let sent = 0; sent < size; sent += block.length) yield block
      }
      const files = driver.files(id)
      await files.write('large', Readable.from(blocks(), { objectMode: false }), {}, within(minute))
      const file = await files.read('large', { maxBytes: size }, within(minute))
      let seen = 0
      for await (const chunk of present(file).content()) seen += chunk.length
      expect(seen).toBe(size)
    })

    test('leaves nothing of a file that a control plane has written half before its end', async () => {
      const id = await created()
      await give(id, 'file', 'old')
      const abort = new AbortController()
      const endless = new Readable({ read() {} })
      endless.push(Buffer.alloc(100_000))
      const writing = driver.files(id).write('file', endless, {}, abort.signal)
      const beside = present((await containersOf(id)).find((name) => name.includes('files')))
      const uploads = () => dockerd.docker('exec', beside, 'ls', '/agent/uploads')
      await until('the upload', async () => (await uploads()) !== '')
      abort.abort(new Error('gone'))
      await expect(writing).rejects.toThrow('gone')
      await until('its removal', async () => (await uploads()) === '')
      expect(await textOf(id, 'file')).toBe('old')
    })

    test('is listed, completed by another create, or destroyed when a killed create left only its volume', async () => {
      const [completed, destroyed] = [randomUUID(), randomUUID()]
      made.push(completed)
      for (const id of [completed, destroyed]) {
        const labels = ['--label', `chowder.installation=${installation}`, '--label', `chowder.instance=${id}`]
        await dockerd.docker('volume', 'create', ...labels, `chowder-${id}`)
      }
      expect(await listed()).toEqual(
        expect.arrayContaining([completed, destroyed].map((id) => ({ id, state: 'stopped' }))),
      )
      await driver.create(contractSpec(completed), within())
      await driver.start(completed, within())
      await driver.destroy(destroyed, within())
      expect((await listed()).map(({ id }) => id)).not.toContain(destroyed)
    })

    test('is not seen by other installations', async () => {
      const id = await created()
      const others = await listed(contractDriver(dockerd.host, randomUUID()))
      expect(others.map((sandbox) => sandbox.id)).not.toContain(id)
    })

    test('gets a deleted network back, before its first start and after, with all its files', async () => {
      const own = contractDriver(dockerd.host, installation, { network: 'chowder-gone' })
      const removeNetwork = () => dockerd.docker('network', 'rm', 'chowder-gone')
      const id = randomUUID()
      made.push(id)
      const running = { state: 'running', endpoint: { kind: 'tcp' } }
      await own.create(contractSpec(id), within())
      await removeNetwork()
      await own.start(id, within())
      expect(await own.observe(id, within())).toMatchObject(running)
      await give(id, 'notes.md', 'kept', own)
      await own.stop(id, { graceMs: 5000 }, within())
      await removeNetwork()
      await expect(own.start(id, within())).rejects.toThrow(SandboxAbsentError)
      await own.create(contractSpec(id), within())
      await own.start(id, within())
      expect(await own.observe(id, within())).toMatchObject(running)
      expect(await textOf(id, 'notes.md', own)).toBe('kept')
    })
  })

  test('a release is built once, with progress, and again after a failure', { timeout: 5 * minute }, async () => {
    const release = {
      root: new URL('../..', import.meta.url).pathname,
      files: ['test/support/contract-gateway.mjs'],
      install: 'cp -r no/such/folder',
      folder: (base: string) => `${base}/support`,
    }
    const failing = contractDriver(dockerd.host, 'builds', { releaseSource: () => release })
    await expect(failing.prepare('v1', () => {}, within(2 * minute))).rejects.toThrow(InstallError)
    const mark = `chowder: ${randomUUID()}`
    const other = { ...release, install: `echo ${mark}` }
    const builds = contractDriver(dockerd.host, 'builds', { releaseSource: () => other })
    const lines: string[] = []
    const progress = (line: string) => lines.push(line)
    await Promise.all([1, 2, 3].map(() => builds.prepare('v1', progress, within(2 * minute))))
    expect(lines.filter((line) => line.includes('is built'))).toHaveLength(1)
    expect(lines.some((line) => mark.includes(present(line.split(' ')[0])))).toBe(true)
    await builds.prepareChannel('v1', 'discord', progress, within())
    expect(lines.filter((line) => line.includes('is built'))).toHaveLength(1)
    const image = present(lines.join(' ').match(/chowder-openclaw:\S+/))[0]
    await dockerd.docker('rmi', image)
  })
})

describe('a dockerd that does not exist', () => {
  test('is a platform that is not available', async () => {
    const driver = contractDriver('unix:///no/such/socket', randomUUID())
    const signal = within()
    const seen: Promise<Observation> = driver.observe('x', signal)
    await expect(seen).rejects.toThrow(SandboxUnavailableError)
    await expect(driver.files('x').stat('a', signal)).rejects.toThrow(SandboxUnavailableError)
    await expect(driver.readLog('x', { lines: 1 }, signal)).rejects.toThrow(SandboxUnavailableError)
  })

  test('a dockerd that never answers delays no call beyond its signal', async () => {
    const mute = createServer(() => {})
    await once(mute.listen(0, '127.0.0.1'), 'listening')
    const { port } = mute.address() as AddressInfo
    const driver = contractDriver(`tcp://127.0.0.1:${port}`, randomUUID())
    const abort = new AbortController()
    const reason = new Error('enough')
    setTimeout(() => abort.abort(reason), 100)
    await expect(driver.observe('x', abort.signal)).rejects.toBe(reason)
    mute.close()
    mute.closeAllConnections()
  })

  test('with a bad address is an error that says what to set', () => {
    for (const host of ['nowhere', 'ssh://somewhere', 'unix://', 'tcp://host'])
      expect(() => contractDriver(host, 'x')).toThrow(/DOCKER_HOST must be/)
  })
})
