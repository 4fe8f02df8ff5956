import { execFile } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { request } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { json, text } from 'node:stream/consumers'
import { promisify } from 'node:util'
import { pack } from 'tar-stream'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { Share } from '#docker-proxy/call.ts'
import { proxySocket } from '#docker-proxy/proxy.ts'
import { imageBuild } from '#sandbox/container/image.ts'
import { filesContainer, firewallContainer, userOf } from '#sandbox/docker/profile.ts'
import { type SandboxDriver, SandboxUnavailableError } from '#sandbox/driver.ts'
import {
  contractBuild,
  contractCommand,
  contractDriver,
  contractProxy,
  contractRelease,
  contractSpec,
} from '../support/docker-host.ts'
import { startDockerd, type TestDockerd } from '../support/dockerd.ts'
import { describeDriver } from '../support/driver-contract.ts'
import { describeFiles } from '../support/files-contract.ts'
import { outputOf } from '../support/output-of.ts'
import { present } from '../support/present.ts'
import { until } from '../support/until.ts'

const within = (ms = 30_000) => AbortSignal.timeout(ms)
const minute = 60_000

describe('before a dockerd', () => {
  let dockerd: TestDockerd
  let folder: string
  let proxy: Awaited<ReturnType<typeof contractProxy>>
  let image: string
  const installation = randomUUID()
  const shares: Share[] = ['api', 'worker']
  const egressNetwork = 'chowder-out'
  let drivers: Record<Share, SandboxDriver>
  const made: string[] = []

  const hostOf = (share: Share) => `unix://${proxySocket(folder, share)}`

  beforeAll(async () => {
    dockerd = await startDockerd()
    folder = await mkdtemp(join(tmpdir(), 'chowder-docker-proxy-'))
    proxy = await contractProxy(dockerd.host, folder)
    drivers = {
      api: contractDriver(hostOf('api'), installation, { egressNetwork }),
      worker: contractDriver(hostOf('worker'), installation, { egressNetwork }),
    }
    const closed = ['--opt', 'com.docker.network.bridge.enable_icc=false']
    const bridge = ['--opt', `com.docker.network.bridge.name=${egressNetwork}`]
    await dockerd.docker('network', 'create', ...closed, ...bridge, egressNetwork)
    image = (await imageBuild('v1', contractRelease, contractBuild)).name
    await drivers.worker.prepare('v1', () => {}, within(5 * minute))
  }, 15 * minute)
  afterAll(async () => {
    for (const id of made) await drivers.worker.destroy(id, within())
    await proxy?.close()
    await dockerd?.close()
    await rm(folder, { recursive: true, force: true })
  }, minute)

  const created = async () => {
    const id = randomUUID()
    made.push(id)
    await drivers.worker.create(contractSpec(id), within())
    return id
  }
  const started = async () => {
    const id = await created()
    await drivers.worker.start(id, within())
    return id
  }

  /** Asks a share as the driver does not. */
  async function ask(share: Share, method: string, path: string, body?: object | NodeJS.ReadableStream) {
    const asking = request({ socketPath: proxySocket(folder, share), method, path, agent: false })
    if (body && 'pipe' in body) body.pipe(asking.setHeader('content-type', 'application/tar'))
    else asking.setHeader('content-type', 'application/json').end(body ? JSON.stringify(body) : '')
    const [response] = await once(asking, 'response')
    return { status: response.statusCode as number, response }
  }

  describeDriver('docker, through the worker’s share,', async () => {
    const driver = contractDriver(hostOf('worker'), randomUUID())
    const ask = async (id: string, path: string) => {
      const { paths } = await driver.observe(id, within())
      const script = `const url = 'http://127.0.0.1:${paths?.port}${path}'
        const ask = (left) => fetch(url).then((answer) => answer.text()).then(console.log, () => left && setTimeout(ask, 50, left - 1))
        ask(100)`
      return driver.exec(id, [paths?.node ?? 'node', '-e', script], { timeoutMs: 10_000 }, within())
    }
    return {
      driver,
      command: (paths) => contractCommand(paths),
      endGateway: async (id, _seen, code) => {
        await ask(id, '/whoami')
        await ask(id, `/exit/${code}`).catch(() => {}) // it ends with its sandbox
      },
      gatewayOf: async (id) => (await ask(id, '/whoami')).stdout,
      async setLoop(id, seen, loop) {
        await ask(id, '/whoami')
        const script = `fetch('http://127.0.0.1:${seen.paths?.port}/${loop}')`
        const options = { timeoutMs: 1000 }
        await driver.exec(id, [seen.paths?.node ?? 'node', '-e', script], options, within())
      },
      runsPrograms: true,
      keepsLimits: true,
      countsDeleted: false,
      close: async () => {},
    }
  })

  test(
    'a second room is made, started, stopped and destroyed through the worker’s share',
    async () => {
      const id = randomUUID()
      made.push(id)
      const { worker } = drivers
      const room = { folder: 'state/workspace', socketFolder: 'room', place: 'shared/workspace', hidden: '.openclaw' }
      await worker.create(contractSpec(id, { room }), within())
      for (const path of ['room/.keep', 'state/workspace/.openclaw/.keep']) {
        await worker.files(id).write(path, Buffer.alloc(0), {}, within())
      }
      await worker.start(id, within())
      const script = "HOME=/agent/home/home /opt/chowder/programs/room/room-ssh.py -T host 'hostname'"
      const call = () => worker.exec(id, ['sh', '-c', script], { timeoutMs: 10_000 }, within())
      await until('the room', async () => (await call()).stdout === 'room\n')
      await worker.stop(id, { graceMs: 1000 }, within())
      await worker.destroy(id, within())
      expect(await dockerd.docker('ps', '-aq', '--filter', `label=chowder.instance=${id}`)).toBe('')
    },
    minute,
  )

  test('S22: the worker’s share lets the driver look at the firewall of sandboxes that run, and of their way out', async () => {
    await started()
    expect(await drivers.worker.protect?.(within())).toBe(false)
    await expect(drivers.api.protect?.(within())).rejects.toThrow(SandboxUnavailableError)
    for (const bridge of ['chowder-test', egressNetwork]) {
      const rule = `-i ${bridge} -m addrtype --dst-type LOCAL -m conntrack ! --ctstate ESTABLISHED,RELATED -j DROP`
      const iptables = (does: '-C' | '-D') =>
        promisify(execFile)('iptables', ['-t', 'mangle', does, 'PREROUTING', ...rule.split(' ')])
      await iptables('-D')
      expect([bridge, await drivers.worker.protect?.(within())]).toEqual([bridge, true])
      await iptables('-C')
    }
  })

  describe('through the share of the api', () => {
    // The calls of dockerd are those of the worker's share, and so is all that checks them but the list of calls.
    describe('files', { tags: ['long'] }, () =>
      describeFiles({
        files: (id) => drivers.api.files(id),
        created,
        started,
        exec: (id, script, timeoutMs) => drivers.api.exec(id, ['sh', '-c', script], { timeoutMs }, within()),
        runsPrograms: () => true,
      }),
    )

    test.each([
      ['running', started],
      ['stopped', created],
    ])('the files of a %s sandbox are written, listed, read, moved and removed', async (_state, make) => {
      const files = drivers.api.files(await make())
      await files.write('a/one', Buffer.from('x'), {}, within())
      await files.move('a/one', 'a/two', { overwrite: false }, within())
      const { entries } = await files.list('a', { maxEntries: 2 }, within())
      expect(entries).toMatchObject([{ name: 'two', size: 1 }])
      const file = await files.read('a/two', { maxBytes: 1 }, within())
      expect(await text(present(file).content())).toBe('x')
      expect(await files.remove('a', { recursive: true }, within())).toBe(true)
    })

    test('a sandbox is reported, and an existing release is prepared', async () => {
      const id = await started()
      expect(await drivers.api.observe(id, within())).toEqual(await drivers.worker.observe(id, within()))
      await drivers.api.prepareChannel('v1', 'discord', () => {}, within())
    })

    test('the output of a sandbox is read, and its use is measured', async () => {
      const id = await started()
      await until('output', async () => (await outputOf(drivers.api, id)).includes('ready'))
      const { position } = await drivers.api.readLog(id, { lines: 1 }, within())
      expect((await drivers.api.readLog(id, { lines: 5, after: position }, within())).lines).toEqual([])
      expect(await drivers.api.measure(id, within())).toMatchObject({ memoryBytes: expect.any(Number) })
    })

    test('no sandbox is made, started, stopped, destroyed or listed', async () => {
      const id = await started()
      const other = await created()
      const { api } = drivers
      const list = async () => {
        for await (const _ of api.list(within()));
      }
      const refused = [
        () => api.create(contractSpec(randomUUID()), within()),
        () => api.start(other, within()),
        () => api.stop(id, { graceMs: 1000 }, within()),
        () => api.destroy(id, within()),
        list,
      ]
      for (const call of refused) await expect(call()).rejects.toThrow(SandboxUnavailableError)
      expect(await drivers.worker.observe(id, within())).toMatchObject({ state: 'running' })
      expect(await drivers.worker.observe(other, within())).toMatchObject({ state: 'stopped' })
    })

    test('no image is built, and the error names the cause', async () => {
      const source = { ...contractRelease, install: 'echo other' }
      const driver = contractDriver(hostOf('api'), installation, { releaseSource: () => source })
      const failed = await driver.prepare('v1', () => {}, within()).catch((error) => error)
      expect(String(failed.cause)).toMatch(/docker-proxy, api: POST \/build: this call of dockerd is not on the list/)
    })
  })

  describe('images', () => {
    test('are built from the proxy’s own files, with any context that the worker sends', {
      timeout: 5 * minute,
    }, async () => {
      const { options } = await imageBuild('v1', contractRelease, contractBuild)
      const query = new URLSearchParams({
        ...options,
        buildargs: JSON.stringify(options.buildargs),
        rm: 'true',
        forcerm: 'true',
      })
      const evil = pack()
      evil.entry({ name: 'Dockerfile' }, 'FROM node:24-slim\nLABEL evil=1\n')
      evil.finalize()
      const { status, response } = await ask(
        'worker',
        'POST',
        `/build?${query}`,
        evil as unknown as NodeJS.ReadableStream,
      )
      response.resume()
      await once(response, 'end')
      expect(status).toBe(200)
      expect(await dockerd.docker('image', 'inspect', '-f', '{{json .Config.Labels}}', image)).not.toContain('evil')
      await dockerd.docker('run', '--rm', image, 'test', '-x', '/opt/chowder/programs/container/image/firewall.sh')
    })

    test('of other files, names or settings are not built', async () => {
      const other = { ...contractRelease, install: 'echo other' }
      const cases = [
        { releaseSource: () => other },
        { buildNetwork: 'none', releaseSource: () => ({ ...contractRelease }) },
      ]
      for (const overrides of cases) {
        const driver = contractDriver(hostOf('worker'), installation, overrides)
        await dockerd.docker('tag', image, 'kept:1')
        await dockerd.docker('rmi', '--no-prune', image)
        try {
          const failed = await driver.prepare('v1', () => {}, within()).catch((error) => error)
          expect(String(failed.cause)).toMatch(/docker-proxy, worker: POST \/build: /)
        } finally {
          await dockerd.docker('tag', 'kept:1', image)
          await dockerd.docker('rmi', 'kept:1')
        }
      }
    })

    test('run as the firewall only when a sandbox has them', async () => {
      await created()
      const idOf = async (name: string) => (await dockerd.docker('image', 'inspect', '-f', '{{.Id}}', name)).trim()
      const makeFirewall = (image: string) =>
        ask('worker', 'POST', '/containers/create', firewallContainer(image, 'chowder-test', 'agents', null))
      expect((await makeFirewall(await idOf('node:24-slim'))).status).toBe(403)
      const { status, response } = await makeFirewall(await idOf(image))
      expect(status).toBe(201)
      await dockerd.docker('rm', ((await json(response)) as { Id: string }).Id)
    })
  })

  describe('a program that has a share', () => {
    let id: string
    let context: string
    const foreign = 'chowder-foreign'

    beforeAll(async () => {
      id = await started()
      await drivers.worker.files(id).write('file', Buffer.from('x'), {}, within())
      context = await mkdtemp(join(tmpdir(), 'chowder-docker-context-'))
      await writeFile(join(context, 'Dockerfile'), 'FROM node:24-slim\nLABEL evil=1\n')
      await writeFile(join(context, 'file'), 'x')
      await dockerd.docker('run', '-d', '--name', foreign, 'node:24-slim', 'sleep', '600')
      await dockerd.docker('volume', 'create', foreign)
      await dockerd.docker('network', 'create', foreign)
    }, minute)
    afterAll(async () => {
      await dockerd.docker('rm', '-f', foreign, 'chowder-renamed').catch(() => {})
      await dockerd.docker('volume', 'rm', '-f', foreign)
      await dockerd.docker('network', 'rm', foreign).catch(() => {})
      await rm(context, { recursive: true })
    }, minute)

    /** Docker's command line, at a share. */
    const docker = (share: Share, ...args: string[]) => {
      const env = { ...process.env, DOCKER_HOST: hostOf(share), DOCKER_API_VERSION: '1.45', DOCKER_BUILDKIT: '0' }
      return promisify(execFile)('/usr/bin/docker', args, { env, timeout: 20_000 })
    }

    /** `IMAGE`, `AGENT`, `FOREIGN` and `CONTEXT` stand for what is there. */
    const run = (...options: string[]) => ['run', '--rm', ...options, 'IMAGE', 'true']
    const attacks: string[][] = [
      run(),
      run('-v', '/:/host'),
      run('-v', 'FOREIGN:/x'),
      run('--mount', 'type=bind,source=/,target=/host'),
      run('--volumes-from', 'FOREIGN'),
      run('--privileged'),
      run('--pid=host'),
      run('--ipc=host'),
      run('--uts=host'),
      run('--network', 'host'),
      run('--network', 'container:FOREIGN'),
      run('--cap-add', 'SYS_ADMIN'),
      run('--security-opt', 'seccomp=unconfined'),
      run('-v', '/var/run:/var/run', '--name', `chowder-${randomUUID()}`),
      run('-v', '/:/host', '--name', `chowder-${randomUUID()}-files-0123456789ab`),
      ['exec', '-u', '0', 'chowder-AGENT', 'true'],
      ['exec', '--privileged', 'chowder-AGENT', 'true'],
      ['exec', 'FOREIGN', 'true'],
      ['cp', 'FOREIGN:/etc/passwd', 'CONTEXT/passwd'],
      ['cp', 'chowder-AGENT:/etc/passwd', 'CONTEXT/passwd'],
      ['cp', 'CONTEXT/file', 'FOREIGN:/tmp/file'],
      ['inspect', 'FOREIGN'],
      ['logs', 'FOREIGN'],
      ['top', 'FOREIGN'],
      ['stats', '--no-stream', 'FOREIGN'],
      ['diff', 'FOREIGN'],
      ['port', 'FOREIGN'],
      ['export', '-o', 'CONTEXT/export', 'chowder-AGENT'],
      ['ps', '-a'],
      ['images'],
      ['image', 'inspect', 'node:24-slim'],
      ['history', 'IMAGE'],
      ['save', '-o', 'CONTEXT/saved', 'IMAGE'],
      ['build', '-t', 'chowder-openclaw:v1-0123456789ab', 'CONTEXT'],
      ['build', '-t', 'evil', 'CONTEXT'],
      ['commit', 'FOREIGN', 'evil'],
      ['tag', 'node:24-slim', 'chowder-openclaw:v1-0123456789ab'],
      ['import', 'CONTEXT/saved', 'evil'],
      ['load', '-i', 'CONTEXT/saved'],
      ['rmi', '-f', 'evil'],
      ['volume', 'ls'],
      ['volume', 'inspect', 'FOREIGN'],
      ['volume', 'create', '--opt', 'type=none', '--opt', 'device=/', '--opt', 'o=bind', 'chowder-evil'],
      ['network', 'ls'],
      ['network', 'inspect', 'bridge'],
      ['network', 'create', 'chowder-evil'],
      ['network', 'connect', 'FOREIGN', 'FOREIGN'],
      ['network', 'disconnect', 'FOREIGN', 'FOREIGN'],
      ['update', '--memory', '1g', '--memory-swap', '1g', 'FOREIGN'],
      ['rename', 'FOREIGN', 'chowder-renamed'],
      ['rename', 'chowder-renamed', 'FOREIGN'],
      ['pause', 'FOREIGN'],
      ['unpause', 'FOREIGN'],
      ['kill', 'FOREIGN'],
      ['start', 'FOREIGN'],
      ['restart', '-t', '0', 'FOREIGN'],
      ['stop', '-t', '0', 'FOREIGN'],
      ['wait', 'FOREIGN'],
      ['rm', '-f', 'FOREIGN'],
      ['network', 'rm', 'FOREIGN', 'chowder-evil'],
      ['volume', 'rm', 'FOREIGN'],
      ['events', '--since', '1m', '--until', '0s'],
      ['info'],
      ['version'],
      ['system', 'df'],
      ['plugin', 'ls'],
      ['volume', 'prune', '-f'],
      ['swarm', 'init', '--advertise-addr', '127.0.0.1'],
      ['swarm', 'leave', '-f'],
    ]
    const twinless: string[][] = [
      ['pull', 'node:24-slim'],
      ['push', 'IMAGE'],
      ['search', 'node'],
      ['container', 'prune', '-f'],
      ['system', 'prune', '-f'],
      ['plugin', 'install', '--grant-all-permissions', 'x/y'],
    ]
    const meant = (words: string[]) =>
      words.map((word) =>
        word.replace('IMAGE', image).replace('AGENT', id).replaceAll('FOREIGN', foreign).replace('CONTEXT', context),
      )

    const expectRefused = async (words: string[]) => {
      const calls = shares.map((share) => docker(share, ...meant(words)))
      for (const call of await Promise.allSettled(calls))
        expect(call).toMatchObject({ reason: { message: expect.stringMatching(/docker-proxy, |Forbidden|403/) } })
    }

    test.each(attacks)('may not: docker %s %s %s %s', async (...words) => {
      await expectRefused(words)
      await dockerd.docker(...meant(words)) // its twin
    })

    test.each(twinless)('may not: docker %s %s %s', (...words) => expectRefused(words))

    test('has the agent’s own rights on the files of that agent', async () => {
      const beside = `chowder-${id}-files-${image.slice(-12)}`
      const { name, ...body } = filesContainer(installation, id, beside, image, userOf(id))
      for (const share of shares) {
        const path = `/containers/create?name=${name}`
        const device = { PathOnHost: '/dev/null', PathInContainer: '/dev/x', CgroupPermissions: 'rwm' }
        for (const more of [{ User: '0:0' }, { HostConfig: { ...body.HostConfig, Devices: [device] } }])
          expect((await ask(share, 'POST', path, { ...body, ...more })).status).toBe(403)
        await dockerd.docker('rm', '-f', name ?? '') // the driver's own, or that of the other share
        expect((await ask(share, 'POST', path, body)).status).toBe(201)
      }
    })
  })
})
