import { execFile } from 'node:child_process'
import { chown, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest'
import { newRelayToken } from '#instances/gateway/tokens.ts'
import { configPath } from '#openclaw/launch.ts'
import { freePort } from '#platform/free-port.ts'
import { reachesAllowed, reachingAttacks, relayCall, type Target } from '../support/agent-attacks.ts'
import { agentEnv } from '../support/agent-sandboxes.ts'
import { type Api, api, say, sessionPath, signUp, waitForStatus } from '../support/api-client.ts'
import { type AttackedHost, got, openAttackedHost } from '../support/attacked-host.ts'
import { newSecret } from '../support/canary/secrets.ts'
import {
  type ChowderProcess,
  findGateway,
  type GatewayProcess,
  makeDataDir,
  removeDataDir,
  startChowder,
} from '../support/chowder-process.ts'
import { type FakeModelProvider, startFakeModelProvider } from '../support/fake-model-provider.mjs'
import { present } from '../support/present.ts'
import { releasesFolder } from '../support/release.ts'

// One list of attacks, by the tool `exec` of a real OpenClaw. TEST_SANDBOX_DRIVER=docker has the agents in containers.

const run = promisify(execFile)
const minute = 60_000
const isRoot = process.getuid?.() === 0
const isDocker = inject('agentDockerHost') !== null
const clone = join(import.meta.dirname, '../..')
/** An ordinary user, who need not have a name. */
const ordinaryUid = 31_338

type Rooms = 'one_room' | 'two_rooms'

const worlds = isDocker
  ? [{ world: 'agents in containers', uid: null }]
  : [
      { world: 'local agents under root', uid: null },
      { world: 'local agents under an ordinary user', uid: ordinaryUid },
    ]

/** In ms; of the second tenant. */
interface Times {
  reads: number[]
  turns: number[]
  failed: number
}

const p99 = (times: number[]) => [...times].sort((a, b) => a - b)[Math.ceil(times.length * 0.99) - 1] ?? Number.NaN

/** Reads and turns of a tenant at a steady rate, until it is closed. */
function measureTenant(client: Api, id: string) {
  let times: Times = { reads: [], turns: [], failed: 0 }
  let isOver = false
  async function again(pauseMs: number, of: 'reads' | 'turns', act: () => Promise<unknown>) {
    while (!isOver) {
      const into = times
      const startedAt = performance.now()
      await act().then(
        () => into[of].push(performance.now() - startedAt),
        () => {
          into.failed += 1
        },
      )
      await sleep(pauseMs)
    }
  }
  const read = async () => {
    if ((await client.get(`/v1/instances/${id}`)).status !== 200) throw new Error('a read failed')
  }
  const loops = [
    again(40, 'reads', read),
    again(200, 'turns', () => say(client, sessionPath(id, `t${Math.floor(performance.now() / minute)}`), 'Hello')),
  ]
  return {
    /** What was measured since the last call. */
    take(): Times {
      const taken = times
      times = { reads: [], turns: [], failed: 0 }
      return taken
    },
    async close() {
      isOver = true
      await Promise.all(loops)
    },
  }
}

/** Starts Chowder as a user, whose name servers are those of the attacked host. */
function startAs(uid: number | null, { resolvConf }: AttackedHost, { place, users }: { place: string; users: string }) {
  const mounts = ['mount --bind "$1" /etc/resolv.conf']
  if (uid !== null) {
    // Every user may enter the clone there. The releases are the user's own, as those that it installs are, and it has a
    // name, without which PostgreSQL makes no database.
    const own = `'X-mount.idmap=u:0:${uid}:1 g:0:${uid}:1'`
    mounts.push(
      'mount --bind "$2" "$3"',
      `mount --bind -o ${own} "$4" "$4"`,
      'mount --bind "$5" /etc/passwd',
      'cd "$3"',
    )
  }
  const become = uid === null ? '' : `setpriv --reuid=${uid} --regid=${uid} --clear-groups --`
  const script = `${mounts.join(' && ')} && shift 5 && exec ${become} "$@"`
  const given = [resolvConf, clone, place, releasesFolder, users]
  const here = (part: string) => (uid !== null && part.startsWith(`${clone}/`) ? part.replace(clone, place) : part)
  return (argv: readonly string[]) => [
    'unshare',
    '--mount',
    '--propagation',
    'private',
    '--',
    'sh',
    '-c',
    script,
    'sh',
    ...given,
    ...argv.map(here),
  ]
}

describe.skipIf(!isRoot).each(worlds)('$world', { tags: ['long'] }, ({ world, uid }) => {
  let host: AttackedHost
  let provider: FakeModelProvider
  let place: string
  let dataDir: string
  let chowder: ChowderProcess
  let client: Api
  let secondClient: Api
  let secondId: string
  let second: GatewayProcess
  let metricsPort: number
  let tenant: ReturnType<typeof measureTenant>
  const ids: Partial<Record<Rooms, string>> = {}
  const table: string[][] = [['attack', 'agent', 'came of it', 'reads', 'p99', 'turns', 'p99', 'failed']]

  const ms = (times: number[]) => `${Math.round(p99(times))} ms`
  function note(attack: string, agent: string, result: string): Times {
    const times = tenant.take()
    const { reads, turns, failed } = times
    table.push([attack, agent, result, `${reads.length}`, ms(reads), `${turns.length}`, ms(turns), `${failed}`])
    return times
  }

  /** Has the agent run a command; returns the end of its output. */
  async function exec(id: string, command: string): Promise<string> {
    const shown = `{ ${command}\n} 2>&1 | tail -c 200`
    const input = { command: shown, yieldMs: 50_000, timeoutSeconds: 60 }
    const said = await say(client, sessionPath(id, 'attack'), `[[fake:tool=exec ${JSON.stringify(input)}]]`)
    const [, result] = / tool-result=([\s\S]*)$/.exec(said) ?? []
    return present(result)
  }
  async function onHost(command: string): Promise<string> {
    const env = { PATH: '/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin' }
    const { stdout } = await run('sh', ['-c', command], { env, timeout: 30_000 }).catch((error) => error)
    return stdout
  }
  const idOf = (rooms: Rooms) => present(ids[rooms])
  const running = (id: string, of = client) => waitForStatus(of, id, 'running', 4 * minute)

  async function targetFor(id: string): Promise<Target> {
    const own = present(await findGateway(id))
    const config = JSON.parse(await readFile(join(own.home, configPath), 'utf8'))
    const [, , , port, folder = ''] = (await readFile(join(dataDir, 'postgres/data/postmaster.pid'), 'utf8')).split(
      '\n',
    )
    const dockerHost = inject('agentDockerHost')
    return {
      host,
      dataDir,
      chowder: { api: Number(new URL(chowder.url).port), metrics: metricsPort },
      database: join(folder, `.s.PGSQL.${port}`),
      other: {
        home: second.home,
        gateway: second.endpoint.kind === 'unix' ? { socket: second.endpoint.path } : { port: second.endpoint.port },
      },
      dockerSocket: dockerHost?.replace('unix://', '') ?? null,
      relay: { url: config.models.providers.anthropic.baseUrl, foreignToken: newRelayToken() },
    }
  }

  beforeAll(async () => {
    host = await openAttackedHost()
    const key = newSecret('provider key', 'sk-ant-')
    provider = await startFakeModelProvider({ apiKey: key })
    place = await mkdtemp(join(tmpdir(), 'chowder-clone-'))
    await run('chmod', ['755', place])
    dataDir = await makeDataDir()
    if (uid !== null) await chown(dataDir, uid, uid)
    const users = join(dataDir, 'users')
    await writeFile(users, `${await readFile('/etc/passwd', 'utf8')}attacked:x:${uid}:${uid}::/:/bin/sh\n`)
    metricsPort = await freePort()
    const env = {
      ...(await agentEnv(provider.url)),
      METRICS_PORT: String(metricsPort),
      HOME: dataDir,
    }
    const isolation = isDocker ? {} : { LOCAL_ISOLATION: 'jail' }
    chowder = await startChowder({
      dataDir,
      env: { ...env, ...isolation },
      command: startAs(uid, host, { place, users }),
    })
    client = api(chowder.url, await signUp(chowder.url, key))
    secondClient = api(chowder.url, await signUp(chowder.url, key))
    const make = async (by: Api, fields: object) =>
      (await by.post('/v1/instances', { name: 'agent', ...fields })).body.id
    secondId = await make(secondClient, {})
    await running(secondId, secondClient)
    for (const isolation of ['one_room', 'two_rooms'] as const) {
      ids[isolation] = await make(client, { isolation })
      await running(idOf(isolation))
    }
    second = present(await findGateway(secondId))
    const planted = await secondClient.put(`/v1/instances/${secondId}/files/content`, {
      path: 'planted.txt',
      content: got,
    })
    expect(planted.status).toBeLessThan(300)
    tenant = measureTenant(secondClient, secondId)
    await sleep(5000)
    tenant.take() // compiles code
    await sleep(15_000)
    note('none', '', '')
  }, 15 * minute)

  afterAll(async () => {
    await tenant?.close()
    const widths = present(table[0]).map((_, at) => Math.max(...table.map((row) => present(row[at]).length)))
    const lines = table.map((row) => row.map((cell, at) => cell.padEnd(present(widths[at]))).join('  '))
    console.log(`${world}: what attacks did to another tenant\n${lines.join('\n')}`)
    await chowder?.kill('SIGINT')
    if (dataDir) await removeDataDir(dataDir)
    if (place) await rm(place, { recursive: true })
    await provider?.close()
    await host?.close()
  }, 3 * minute)

  test.each(['one_room', 'two_rooms'] as const)(
    'A5, A6, A7, A11: an agent with %s reaches nothing that is not its own',
    {
      timeout: 20 * minute,
    },
    async (rooms) => {
      const id = idOf(rooms)
      const target = await targetFor(id)
      const attacks = reachingAttacks(target)
      // Else the refusals say nothing.
      const missing: string[] = []
      for (const { name, twin } of attacks) if (twin && !(await onHost(twin)).includes(got)) missing.push(name)
      expect(missing).toEqual([])
      expect(await exec(id, 'echo 1 >own.txt && cat own.txt && echo $((40 + 2))')).toContain('42')
      const { command, shown } = reachesAllowed(host)
      const reached = await exec(id, command)
      if (rooms === 'one_room') {
        expect(reached).toContain(shown)
        const own = relayCall(
          target.relay.url,
          `$(sed -n 's/.*"apiKey": *"\\([^"]*\\)".*/\\1/p' $HOME/../${configPath} | head -1)`,
        )
        expect(await exec(id, own)).toContain(got)
      } else expect(reached).not.toContain(shown)
      tenant.take()
      const successes: [string, string][] = []
      for (const { name, command } of attacks) {
        const result = await exec(id, command)
        const isSuccess = result.includes(got)
        if (isSuccess) successes.push([name, result])
        note(name, rooms, isSuccess ? 'SUCCESS' : 'refused')
      }
      expect(successes).toEqual([])
    },
  )

  test.each(['one_room', 'two_rooms'] as const)(
    'A8: the files API follows no link that an agent with %s made',
    async (rooms) => {
      const id = idOf(rooms)
      const links = ['/etc/passwd', `${dataDir}/secret-key`, '../openclaw.json']
      await exec(id, links.map((to, at) => `ln -sf ${to} link-${at}`).join('; '))
      await exec(id, 'ln -sfn .. folder; ln -sfn / root; echo plain >plain.txt')
      const read = async (path: string) =>
        (await client.get(`/v1/instances/${id}/files/content?path=${encodeURIComponent(path)}`)).status
      expect(await read('plain.txt')).toBe(200)
      for (const path of ['link-0', 'link-1', 'link-2', 'folder/openclaw.json', 'root/etc/passwd']) {
        expect([path, await read(path)]).toEqual([path, expect.toSatisfy((status: number) => status >= 400)])
      }
      note('links for the files API', rooms, 'refused')
    },
  )

  test('A11: an agent with two rooms plants no plugin for its gateway', async () => {
    const make = (folder: string) => `mkdir -p ${folder}/extensions && echo made`
    const command = `${make('.openclaw')}; mv .openclaw elsewhere && echo made; rm -rf .openclaw && echo made`
    expect(await exec(idOf('two_rooms'), command)).not.toContain('made')
    expect(await exec(idOf('two_rooms'), make('.other'))).toContain('made')
    note('a plugin for the gateway', 'two_rooms', 'refused')
  })

  test('the ports on which an agent waits for the tokens of another bring it nothing', async () => {
    const squat = `perl -MIO::Socket::INET -e '
      my @s = map { IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => $_, Listen => 9) } 18789, 20000 .. 20100;
      my $r = ""; vec($r, fileno $_, 1) = 1 for grep { $_ } @s;
      print select($r, undef, undef, 6) ? "caught" : "waited in vain"'`
    expect(await exec(idOf('one_room'), squat)).toContain('waited in vain')
    const { failed } = note('port squatting', 'one_room', 'refused')
    expect(failed).toBe(0)
  })
})
