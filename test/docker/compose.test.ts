import { execFile } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { readFile, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type Answer, type Api, api, say, sessionPath, signUp, waitForStatus } from '../support/api-client.ts'
import { newSecret } from '../support/canary/secrets.ts'
import { codeBlocksOf } from '../support/code-blocks.ts'
import { type ComposeCheckout, openComposeCheckout } from '../support/compose.ts'
import { startDockerd, type TestDockerd } from '../support/dockerd.ts'
import { type Outside, openOutside } from '../support/outside.ts'
import { present } from '../support/present.ts'
import { until } from '../support/until.ts'

const run = promisify(execFile)
const minute = 60_000
const port = 18_088
const url = `http://127.0.0.1:${port}`
const providerKey = newSecret('provider key', 'sk-ant-')
const support = (name: string) => fileURLToPath(new URL(`../support/${name}`, import.meta.url))
const everyPort = '1-65535'
/** Of workers, three seconds apart: each takes its lease of 30 s with it. */
const kills = 6

const lines = (text: string) => text.split('\n').filter(Boolean)

describe('docker compose', () => {
  let dockerd: TestDockerd
  let outside: Outside
  let checkout: ComposeCheckout
  let signupToken: string
  let key: string
  let client: Api
  let agent: string
  let neighbour: string

  /** What takes connections at this host, seen from another. */
  const scanFromOutside = async (): Promise<number[]> => {
    const args = [process.execPath, support('scan-ports.mjs'), outside.host, everyPort]
    return JSON.parse((await run('ip', ['netns', 'exec', outside.name, ...args])).stdout)[outside.host]
  }
  let openBefore: number[]

  /** The ports of this host that something listens on, by its own word: a busy one may be late to a scan. */
  const listening = async (): Promise<number[]> => {
    const tables = await Promise.all(['tcp', 'tcp6'].map((name) => readFile(`/proc/net/${name}`, 'utf8')))
    const listed = tables.flatMap((table) => [...table.matchAll(/^ *\d+: [0-9A-F]+:([0-9A-F]{4}) \S+ 0A /gm)])
    return listed.map(([, hex = '']) => Number.parseInt(hex, 16))
  }

  beforeAll(async () => {
    dockerd = await startDockerd()
    // Not on this host: agents are kept from it.
    outside = await openOutside((at) => [support('fake-model-provider.mjs'), '--host', '0.0.0.0', '--port', String(at)])
    openBefore = [...(await listening()), 3978] // that of Microsoft Teams’ plugin, in a test beside this one
    const { NODE_EXTRA_CA_CERTS } = process.env
    checkout = await openComposeCheckout(dockerd, {
      CHOWDER_PORT: String(port),
      CHOWDER_ALLOWED_HOSTS: '*', // each API is asked by its own address as well
      ANTHROPIC_BASE_URL: `http://${outside.address}:${outside.port}`,
      // Other hosts of tests, and one address of this host.
      EGRESS_ALLOWED_HOSTS: '198.51.100.0/24:*',
      ...(NODE_EXTRA_CA_CERTS && { DOCKER_EXTRA_CA_FILE: NODE_EXTRA_CA_CERTS }),
    })
    await checkout.compose('up', '-d', '--wait')
    const admin = ['exec', '-T', 'api', 'node', 'src/commands/admin.ts']
    signupToken = (await checkout.compose(...admin, 'signup-token')).trim()
    key = await signUp(url, providerKey, signupToken)
    client = api(url, key)
    const openclaw_config = { 'hooks.token': newSecret('override secret') }
    agent = (await client.post('/v1/instances', { name: 'my-assistant', openclaw_config })).body.id
    await waitForStatus(client, agent, 'running', 15 * minute) // the first builds the image of the release
  }, 25 * minute)

  afterAll(async () => {
    try {
      if (agent) await checkout.search()
    } finally {
      await checkout?.close()
      await outside?.close()
      await dockerd?.close()
    }
  }, 5 * minute)

  const inspect = async (name: string) => JSON.parse(await dockerd.docker('inspect', name))[0]
  const sandboxOf = (id: string) => `chowder-${id}`
  const addressesOf = async (service: string): Promise<string[]> => {
    const found: string[] = []
    for (const id of await checkout.containers(service))
      for (const { IPAddress } of Object.values<{ IPAddress: string }>((await inspect(id)).NetworkSettings.Networks))
        if (IPAddress) found.push(IPAddress)
    return found
  }
  /** The API of one container, past the balancer. */
  const apiOf = async (container: string) =>
    api(`http://${(await inspect(container)).NetworkSettings.Networks.chowder_front.IPAddress}:8080`, key)
  /** The names of what dockerd has of an instance. */
  const ofInstance = async (what: 'ps' | 'volume ls', id: string, ...filter: string[]) =>
    lines(
      await dockerd.docker(
        ...what.split(' '),
        what === 'ps' ? '-aq' : '-q',
        '--filter',
        `label=chowder.instance=${id}`,
        ...filter,
      ),
    )
  const startOf = async (id: string) => {
    const { Id, State } = await inspect(sandboxOf(id))
    return [Id, State.StartedAt]
  }

  /** What a command prints that the agent runs by its own tool. */
  async function byTool(command: string): Promise<string> {
    const session = sessionPath(agent, `tool-${randomUUID()}`)
    const run = JSON.stringify({ command: `rm -f found; { ${command}; } >part; mv part found` })
    await say(client, session, `[[fake:tool=exec ${run}]]`)
    return until(
      'the end of the command',
      async () => {
        const { status, body } = await client.get(`/v1/instances/${agent}/files/content?path=found`)
        return status === 200 && body.content
      },
      2 * minute,
    )
  }

  it('gives a whole Chowder, whose agents talk and remember', async () => {
    expect(await say(client, sessionPath(agent), 'my name is Ada')).toContain('turns=1 last="my name is Ada"')
    expect(await say(client, sessionPath(agent), 'what is my name?')).toContain('turns=2')
    expect((await client.get(`/v1/instances/${agent}`)).body.gateway_url).toBe(`${url}/v1/instances/${agent}`)
  })

  it('S6: publishes the API’s port on this host alone, and no other', async () => {
    const open = await scanFromOutside()
    expect(open.filter((one) => !openBefore.includes(one))).toEqual([])
    const ports = await dockerd.docker('ps', '--filter', 'label=com.docker.compose.project', '--format', '{{.Ports}}')
    expect(ports.match(/\S+->\S+/g)).toEqual([`127.0.0.1:${port}->8080/tcp`])
    expect(await dockerd.docker('ps', '--format', '{{.Ports}}')).not.toContain(':3978->')
    for (const path of ['/metrics', '/queues', '/admin', '/debug/pprof', '/config/'])
      expect([path, (await client.get(path)).status]).toEqual([path, 404])
  })

  it('S6: lets nobody sign up without the token', async () => {
    const answer = await api(url).post('/v1/organization/signup', { name: 'Stranger' })
    expect([answer.status, answer.body.error.code]).toEqual([401, 'invalid_signup_token'])
  })

  it('serves a domain with TLS once it is given one, beside the port that it has', async () => {
    const balancer = join(checkout.folder, 'deploy/compose/Caddyfile')
    const adapted = await dockerd.docker(
      ...['run', '--rm', '--env', 'CHOWDER_SITE=, agents.example.com', '--volume', `${balancer}:/Caddyfile:ro`],
      ...['--entrypoint', 'caddy', 'caddy:2', 'adapt', '--adapter', 'caddyfile', '--config', '/Caddyfile'],
    )
    const { servers } = JSON.parse(adapted).apps.http as { servers: Record<string, { listen: string[] }> }
    expect(Object.values(servers).flatMap(({ listen }) => listen)).toEqual([':443', ':8080'])
    expect(adapted).toContain('"host":["agents.example.com"]')
    expect(new Set(adapted.match(/"dial":"[^"]*"/g))).toEqual(new Set(['"dial":"api:8080"']))
  })

  it('has secrets of its own, which are in no environment, argument or log', async () => {
    const volume = (name: string, file: string) =>
      dockerd.docker('run', '--rm', '-v', `chowder_${name}:/v:ro`, 'redis:8', 'cat', `/v/${file}`)
    const secrets = await Promise.all([
      volume('chowder-secrets', 'secret-key'),
      volume('postgres-secrets', 'password'),
      volume('redis-secrets', 'password'),
    ])
    expect(secrets.map((secret) => secret.length)).toEqual([44, 43, 43])
    // A container that has just ended may be removed between the two commands.
    const inspected = await until('all containers to be inspected', async () =>
      dockerd.docker('inspect', ...lines(await dockerd.docker('ps', '-aq'))).catch(() => null),
    )
    const shown = [inspected, await checkout.compose('logs', '--no-color'), await checkout.compose('top')].join('\n')
    expect(shown).toContain('chowder-worker-1')
    for (const secret of [...secrets, signupToken, key, providerKey]) expect(shown).not.toContain(secret)
    const [postgres = ''] = await checkout.containers('postgres')
    const asked = (...environment: string[]) =>
      dockerd
        .docker(
          'exec',
          ...environment.flatMap((one) => ['-e', one]),
          postgres,
          'psql',
          '-h',
          '127.0.0.1',
          '-U',
          'chowder',
          '-wc',
          'select 1',
        )
        .then(
          () => 'let in',
          ({ stderr }) => stderr,
        )
    expect(await asked()).toContain('no password supplied')
    expect(await asked('PGPASSWORD=chowder')).toContain('password authentication failed')
    expect(await asked(`PGPASSWORD=${secrets[1]}`)).toBe('let in')
    const [redis = ''] = await checkout.containers('redis')
    expect(await dockerd.docker('exec', redis, 'redis-cli', 'ping')).toContain('NOAUTH')
    expect(await dockerd.docker('exec', '-e', `REDISCLI_AUTH=${secrets[2]}`, redis, 'redis-cli', 'ping')).toContain(
      'PONG',
    )
  })

  it('runs nothing with more rights than it needs, and dockerd’s socket is in one container that has no network', async () => {
    const ids = lines(await checkout.compose('ps', '-aq'))
    const holders: string[] = []
    for (const { Config, HostConfig, Mounts, Name } of await Promise.all(ids.map(inspect))) {
      const caps = Name === '/chowder-balancer-1' ? ['NET_BIND_SERVICE'] : []
      expect([
        Name,
        HostConfig.CapDrop,
        (HostConfig.CapAdd ?? []).map((cap: string) => cap.replace('CAP_', '')),
      ]).toEqual([Name, ['ALL'], caps])
      expect(HostConfig).toMatchObject({
        Privileged: false,
        ReadonlyRootfs: true,
        SecurityOpt: ['no-new-privileges'],
        PidMode: '',
        IpcMode: 'private',
      })
      if (/api|worker|migrate/.test(Name)) expect(Config.User).toBe('chowder')
      if (!Mounts.some(({ Source }: { Source: string }) => Source === dockerd.host.replace('unix://', ''))) continue
      holders.push(Name)
      expect(HostConfig.NetworkMode).toBe('none')
    }
    expect(holders).toEqual(['/chowder-docker-proxy-1'])
  })

  it(
    'T8: keeps agents, whatever they run, from all but the relay',
    async () => {
      neighbour = (await client.post('/v1/instances', { name: 'neighbour' })).body.id
      await waitForStatus(client, neighbour, 'running')
      const bridge: string = (await inspect('chowder-sandbox')).IPAM.Config[0].Gateway
      const { IPAddress: beside } = (await inspect(sandboxOf(neighbour))).NetworkSettings.Networks['chowder-sandbox']
      const ours = (await Promise.all(['api', 'worker', 'postgres', 'redis', 'balancer'].map(addressesOf))).flat()
      const hosts = [bridge, outside.address, outside.host, outside.linkLocal, beside, ...ours]
      const served = `22,80,443,2019,2375,2376,5432,6379,8000,8080,9464,18789,18790,${port}`
      const files = `/v1/instances/${agent}/files/content`
      const content = await readFile(support('scan-ports.mjs'), 'utf8')
      expect((await client.put(files, { path: 'scan-ports.mjs', content })).status).toBeOneOf([200, 201, 202, 204])

      const scan = async (targets: string[], ports: string): Promise<Record<string, number[]>> =>
        JSON.parse(await byTool(`node scan-ports.mjs ${targets.join(',')} ${ports}`))
      const closed = Object.fromEntries(hosts.map((host) => [host, [] as number[]]))
      const relay = await addressesOf('relay')
      const seen = await scan([...hosts, ...relay], served)
      // At its address in the network of the agents.
      expect(relay.flatMap((address) => seen[address] ?? [])).toEqual([18_790])
      for (const address of relay) delete seen[address]
      expect(seen).toEqual(closed)
      // All of this host's ports.
      expect(await scan([bridge], everyPort)).toEqual({ [bridge]: [] })
      // The same scan finds them all from where they may be reached.
      const [worker = ''] = await checkout.containers('worker')
      const twin = await dockerd.docker('exec', worker, 'node', '-e', content, '-', ours.join(','), served)
      const ask = `fetch('http://${beside}:18790/').then(({ status }) => console.log(status))`
      expect(lines(await dockerd.docker('exec', worker, 'node', '-e', ask))).toEqual(['403'])
      const found = Object.values<number[]>(JSON.parse(twin)).flat()
      expect(found).toEqual(expect.arrayContaining([5432, 6379, 8080, 9464]))
    },
    6 * minute,
  )

  it(
    'A5: has agents reach other hosts through the egress proxy alone, as far as their policy lets them',
    async () => {
      const lan = '10.214.7.2'
      const host = createServer((_, answer) => answer.end('host')).listen(0, '0.0.0.0')
      if (!host.listening) await once(host, 'listening')
      const { port: hostPort } = host.address() as AddressInfo
      await run('ip', ['-n', outside.name, 'addr', 'add', `${lan}/32`, 'dev', 'lo'])
      await run('ip', ['route', 'replace', `${lan}/32`, 'via', outside.address])
      const { Gateway: bridge } = (await inspect('chowder_front')).IPAM.Config[0]
      const allowed = `http://${outside.address}:${outside.port}/__fake/health`
      const { linkLocal } = outside
      const addresses = [`${lan}:${outside.port}`, `${linkLocal}:${outside.port}`, `${bridge}:${hostPort}`]
      const inData = async (service: string) => {
        const [container = ''] = await checkout.containers(service)
        return (await inspect(container)).NetworkSettings.Networks.chowder_data.IPAddress as string
      }
      const [api, worker] = [await inData('api'), await inData('worker')]
      const targets = [...addresses, 'postgres:5432', 'redis:6379', `${api}:8080`, `${worker}:9464`]
      const statuses = async (urls: string[], ...options: string[]) => {
        const curl = `curl -s -m 4 -o /dev/null -w '%{http_code} ' ${options.join(' ')}`
        return (await byTool(urls.map((url) => `${curl} '${url}'`).join('; '))).trim().split(' ')
      }
      const policy = async (egress: { mode: string; hosts?: string[] }) => {
        const patched = await client.patch(`/v1/instances/${agent}`, { egress: { hosts: [], ...egress } })
        expect(patched.status).toBe(200)
        await sleep(1000)
      }
      try {
        expect(await statuses([allowed, ...targets])).toEqual(['200', ...targets.map(() => '403')])
        const direct = [allowed, ...addresses]
        expect(await statuses(direct, '--noproxy', "'*'")).toEqual(direct.map(() => '000'))
        // The proxy lets this through, and the firewall does not.
        expect(await statuses([`http://${outside.host}:${hostPort}/`])).toEqual(['000'])

        // Who is not kept from them reaches them all: the relay what is no service of this host or a cloud.
        const connect = await readFile(support('scan-ports.mjs'), 'utf8')
        const opens = async (found: Promise<string>) =>
          Object.entries<number[]>(JSON.parse(await found)).flatMap(([at, ports]) => ports.map((one) => `${at}:${one}`))
        const [relay = ''] = await checkout.containers('relay')
        const names = `${lan},postgres,redis,${api},${worker}`
        const asRelay = ['exec', relay, 'node', '-e', connect, '-', names, `${outside.port},5432,6379,8080,9464`]
        const free = ['run', '--rm', '--entrypoint', 'node', 'chowder:local', '-e', connect, '-']
        const ofHost = [`${linkLocal},${bridge},${outside.host}`, `${outside.port},${hostPort}`]
        const reached = await Promise.all([
          opens(dockerd.docker(...asRelay)),
          opens(dockerd.docker(...free, ...ofHost)),
        ])
        expect(reached.flat()).toEqual(expect.arrayContaining([...targets, `${outside.host}:${hostPort}`]))

        await policy({ mode: 'none' })
        expect(await statuses([allowed])).toEqual(['403'])
        await policy({ mode: 'allowlist', hosts: ['files.example.com'] })
        expect(await statuses([allowed])).toEqual(['403'])
        await policy({ mode: 'allowlist', hosts: [`${outside.address}:${outside.port}`] })
        expect(await statuses([allowed, `http://${outside.host}:${outside.port}/`])).toEqual(['200', '403'])
        await policy({ mode: 'report' })
        expect(await statuses([allowed])).toEqual(['200'])
        const shown = async () => {
          const { hosts } = (await client.get(`/v1/instances/${agent}/egress`)).body
          return hosts.find(({ host }: { host: string }) => host === outside.address)?.verdict === 'reported'
        }
        await until('the report', shown)
      } finally {
        await client.patch(`/v1/instances/${agent}`, { egress: null })
        host.close()
        host.closeAllConnections()
        await run('ip', ['route', 'del', `${lan}/32`])
      }
    },
    3 * minute,
  )

  it('has any number of APIs and workers, which come and go', {
    tags: ['long'],
    timeout: 10 * minute,
  }, async () => {
    await checkout.compose('up', '-d', '--wait', '--no-recreate', '--scale', 'api=3', '--scale', 'worker=3')
    const [first, second, third] = await Promise.all((await checkout.containers('api')).map(apiOf))
    if (!first || !second || !third) throw new Error('there are not three APIs')
    const before = await startOf(agent)
    const answers: number[] = []
    let isOver = false
    const load = (async () => {
      while (!isOver) {
        answers.push((await client.get('/v1/instances')).status)
        await sleep(20)
      }
    })()
    const killing = (async () => {
      const workers = await checkout.containers('worker')
      for (let kill = 0; kill < kills; kill += 1) {
        const { State } = await inspect(workers[kill % workers.length] ?? '')
        // Not by dockerd, which would not start it again then.
        if (State.Pid > 0) process.kill(State.Pid, 'SIGKILL')
        await sleep(3000)
      }
    })()
    try {
      const id = neighbour
      expect(await say(third, sessionPath(id), 'hello')).toContain('turns=1')
      expect((await second.post(`/v1/instances/${id}/stop`)).body.status).toBe('stopped')
      expect((await third.post(sessionPath(id), { model: 'openclaw', input: 'hello' })).status).toBe(409)
      expect((await third.post(`/v1/instances/${id}/start`)).status).toBeOneOf([200, 201, 202, 204])
      await waitForStatus(first, id, 'running')
      expect(await say(second, sessionPath(id), 'again')).toContain('turns=2')
      expect(await ofInstance('ps', id, '--filter', 'label=chowder.role=sandbox')).toHaveLength(1)
      expect((await first.delete(`/v1/instances/${id}`)).status).toBe(204)
      await until('the end of it', async () => (await ofInstance('volume ls', id)).length === 0, 2 * minute)
    } finally {
      isOver = true
      await Promise.all([killing, load])
    }
    console.info(`${answers.length} answers while workers were killed`)
    expect(answers.length).toBeGreaterThan(100)
    expect(answers.filter((status) => status !== 200)).toEqual([])
    expect(await startOf(agent), 'no agent was restarted').toEqual(before)
  })

  it('is upgraded, with a migration, while it is used', { timeout: 10 * minute }, async () => {
    await checkout.compose('up', '-d', '--wait', '--scale', 'api=2', '--scale', 'worker=1')
    const before = await startOf(agent)
    const old = await checkout.containers('api')
    // The next version.
    const journalPath = join(checkout.folder, 'migrations/meta/_journal.json')
    const journal = JSON.parse(await readFile(journalPath, 'utf8'))
    const last = journal.entries.at(-1)
    journal.entries.push({ ...last, idx: last.idx + 1, when: last.when + 1, tag: 'next' })
    await writeFile(journalPath, JSON.stringify(journal))
    await writeFile(join(checkout.folder, 'migrations/next.sql'), 'ALTER TABLE organizations ADD COLUMN next text;')
    // And a setting.
    await writeFile(join(checkout.folder, 'regions.yaml'), 'regions:\n  here: { driver: docker }\n')
    await writeFile(join(checkout.folder, '.env'), 'CHOWDER_CONFIG_FILE=./regions.yaml\n')

    let isOver = false
    const failed: unknown[] = []
    const done = { polls: 0, creates: 0, streams: 0, cut: 0 }
    async function repeat(what: keyof typeof done, everyMs: number, act: () => Promise<unknown>): Promise<void> {
      while (!isOver) {
        const fault = await act().catch(String)
        if (fault) failed.push([what, fault])
        done[what] += 1
        await sleep(everyMs)
      }
    }
    const unlessDone = ({ status, body }: Answer) => (status < 300 ? null : [status, body])
    const using = [
      repeat('polls', 50, async () => unlessDone(await client.get(`/v1/instances/${agent}`))),
      repeat('creates', 10_000, async () => {
        const created = await client.post('/v1/instances', { name: 'short-lived' })
        return unlessDone(created) ?? unlessDone(await client.delete(`/v1/instances/${created.body.id}`))
      }),
      repeat('streams', 0, async () => {
        const body = { model: 'openclaw', input: '[[fake:words=20]] [[fake:chunk-delay=100]]' }
        let last = { name: null as string | null, data: '' }
        // An API that ends says so: of a turn that had not begun to answer with a 503, of any other at its end.
        try {
          const events = client.stream(sessionPath(agent, 'streamed'), body, AbortSignal.timeout(minute))
          for await (const event of events) if (event.name !== null) last = event
        } catch (error) {
          last = { name: 'response.failed', data: String(error) }
        }
        const isCut = last.name === 'response.failed' && last.data.includes('shutting down')
        done.cut += Number(isCut)
        if (isCut || last.name === 'response.completed') return null
        return last.data.match(/"error":\{[^}]*\}/)?.[0] ?? last
      }),
    ]
    await checkout.upgrade().finally(() => {
      isOver = true
    })
    await Promise.all(using)
    console.info(`while it was upgraded: ${JSON.stringify(done)}`)
    if (failed.length > 0) {
      const log = await dockerd.docker('logs', '--tail', '50', sandboxOf(agent))
      expect.fail(`${JSON.stringify(failed)}\n${await checkout.compose('logs', '--tail', '20', 'balancer')}\n${log}`)
    }
    expect(Math.min(done.polls, done.creates, done.streams)).toBeGreaterThan(1)
    expect(done.cut, 'turns that the upgrade cut').toBe(0)
    const apis = await checkout.containers('api')
    expect(apis).toHaveLength(2)
    expect(apis.filter((id) => old.includes(id))).toEqual([])
    const [postgres = ''] = await checkout.containers('postgres')
    expect(await dockerd.docker('exec', postgres, 'psql', '-U', 'chowder', '-c', '\\d organizations')).toContain('next')
    expect(await startOf(agent), 'no agent was restarted').toEqual(before)
    expect(await say(client, sessionPath(agent), 'and now?')).toContain('turns=3')
  })

  it('has the regions of a file on the host', async () => {
    const { body } = await client.get('/v1/regions')
    expect(body).toMatchObject([{ name: 'here', default: true, engine: 'docker', takes_new_instances: true }])
    const isReady = async () => {
      const said = lines(await checkout.compose('logs', '--no-color', 'worker'))
      return said.some((line) => /"region":"here".*OpenClaw .* is ready/.test(line))
    }
    await until('the release of the region', isReady, minute)
  })

  it('changes its secret key by the commands of the documentation', {
    tags: ['long'],
    timeout: 6 * minute,
  }, async () => {
    const read = () => checkout.compose('exec', '-T', 'api', 'cat', '/run/secrets/chowder/secret-key')
    const [old, before] = [await read(), await startOf(agent)]
    const { text } = present(codeBlocksOf('docs/operations.md').find((block) => block.text.startsWith('put_keys()')))
    expect(await checkout.shell(text)).toContain('Remove the old key')
    const key = await read()
    expect(key).toMatch(/^[A-Za-z0-9+/]{43}=$/)
    expect(key).not.toBe(old)
    await checkout.compose('up', '-d', '--wait')
    const doctor = ['exec', '-T', 'worker', 'node', 'src/commands/doctor.ts']
    expect(await checkout.compose(...doctor).catch(({ stdout }) => stdout)).toContain('Everything is as it must be.')
    expect(await say(client, sessionPath(agent, 'after-the-change'), 'hello')).toContain('turns=1')
    expect(await startOf(agent), 'no agent was restarted').toEqual(before)
  })

  it(
    'comes back after its end, and the agent remembers',
    async () => {
      const before = await startOf(agent)
      await checkout.compose('down')
      expect(await checkout.compose('ps', '-aq')).toBe('')
      await checkout.compose('up', '-d', '--wait')
      expect(await say(client, sessionPath(agent), 'still there?')).toContain('turns=4')
      expect(await startOf(agent), 'it went on meanwhile').toEqual(before)
    },
    5 * minute,
  )

  it('starts a stopped agent after its end, and it remembers', { tags: ['long'], timeout: 5 * minute }, async () => {
    expect((await client.post(`/v1/instances/${agent}/stop`)).status).toBeOneOf([200, 201, 202, 204])
    await checkout.compose('down')
    await checkout.compose('up', '-d', '--wait')
    expect((await client.post(`/v1/instances/${agent}/start`)).status).toBeOneOf([200, 201, 202, 204])
    await waitForStatus(client, agent, 'running')
    expect(await say(client, sessionPath(agent), 'and now?')).toContain('turns=5')
  })
})
