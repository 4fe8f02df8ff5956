import { execFile } from 'node:child_process'
import { randomInt } from 'node:crypto'
import { chown, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { afterAll, afterEach, beforeAll, describe, expect, inject, test } from 'vitest'
import { newRelayToken } from '#instances/gateway/tokens.ts'
import { configPath } from '#openclaw/inside/launch.ts'
import { freePort } from '#platform/free-port.ts'
import {
  askModel,
  ownToken,
  reachesAllowed,
  reachingAttacks,
  relayCall,
  type Target,
} from '../support/agent-attacks.ts'
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
  volumeOfAgent,
} from '../support/chowder-process.ts'
import {
  attackerResources,
  exhaustingAttacks,
  fillDeleted,
  fillDisk,
  fillWithFiles,
  outlive,
} from '../support/exhausting-attacks.ts'
import { type FakeModelProvider, startFakeModelProvider } from '../support/fake-model-provider.mjs'
import { watchTenant } from '../support/other-tenant.ts'
import { present } from '../support/present.ts'
import { releasesFolder } from '../support/release.ts'
import { until } from '../support/until.ts'

// One list of attacks, by the tool `exec` of a real OpenClaw. TEST_SANDBOX_DRIVER=docker has the agents in containers, and
// =kubernetes in pods.

const run = promisify(execFile)
const minute = 60_000
const isRoot = process.getuid?.() === 0
const isDocker = inject('agentDockerHost') !== null
const isKubernetes = inject('agentCluster') !== null
const clone = join(import.meta.dirname, '../..')
/** An ordinary user, who need not have a name. */
const ordinaryUid = 31_338

/** The longest that `/healthz` may take during an attack. */
const mostHealthMs = 1000

type Rooms = 'one_room' | 'two_rooms'
/** Agents in pods have one room. */
const eachRooms: Rooms[] = ['one_room', 'two_rooms']

const localWorlds = [
  { world: 'local agents under root', uid: null },
  { world: 'local agents under an ordinary user', uid: ordinaryUid },
]
const worlds =
  isDocker || isKubernetes ? [{ world: isDocker ? 'agents in containers' : 'agents in pods', uid: null }] : localWorlds

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

describe.skipIf(!isRoot).each(worlds)('$world', { tags: ['long'] }, ({ uid }) => {
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
  let tenant: ReturnType<typeof watchTenant>
  const ids: Partial<Record<Rooms, string>> = {}

  /** No request of the other tenant has failed since the last call, and the API has answered in time. */
  function expectTenantWell(): void {
    const { failures, slowestHealthMs } = tenant.take()
    expect(failures).toEqual([])
    expect(slowestHealthMs).toBeLessThan(mostHealthMs)
  }

  async function useExec(id: string, input: object): Promise<string> {
    const said = await say(client, sessionPath(id, 'attack'), `[[fake:tool=exec ${JSON.stringify(input)}]]`)
    const [, result] = / tool-result=([\s\S]*)$/.exec(said) ?? []
    return present(result)
  }
  /** Has the agent run a command; returns the end of its output. */
  const exec = (id: string, command: string) =>
    useExec(id, { command: `{ ${command}\n} 2>&1 | tail -c 200`, yieldMs: 50_000, timeoutSeconds: 60 })
  /** Has the agent begin a command that goes on after the turn. The turn fails where the command leaves it no room. */
  const begin = (id: string, command: string) => {
    attacking = id
    return useExec(id, { command, background: true, timeoutSeconds: 1200 }).catch((error: Error) => error.message)
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
        gateway: second.endpoint,
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
    const isolation = isDocker || isKubernetes ? {} : { LOCAL_ISOLATION: 'jail' }
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
    for (const isolation of eachRooms) {
      ids[isolation] = await make(client, { isolation, resources: attackerResources })
      await running(idOf(isolation))
    }
    second = present(await findGateway(secondId))
    const planted = await secondClient.put(`/v1/instances/${secondId}/files/content`, {
      path: 'planted.txt',
      content: got,
    })
    expect(planted.status).toBeLessThan(300)
    tenant = watchTenant(secondClient, secondId)
    await tenant.enough()
  }, 20 * minute)

  afterAll(async () => {
    await tenant?.close()
    await chowder?.kill('SIGINT')
    if (dataDir) await removeDataDir(dataDir)
    if (place) await rm(place, { recursive: true })
    await provider?.close()
    await host?.close()
  }, 8 * minute)

  test.each(eachRooms)(
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
        const own = relayCall(target.relay.url, ownToken)
        expect(await exec(id, own)).toContain(got)
      } else expect(reached).not.toContain(shown)
      tenant.take()
      const successes: [string, string][] = []
      for (const { name, command } of attacks) {
        const result = await exec(id, command)
        if (result.includes(got)) successes.push([name, result])
      }
      expect(successes).toEqual([])
      expectTenantWell()
    },
  )

  test.each(eachRooms)('A8: the files API follows no link that an agent with %s made', async (rooms) => {
    const id = idOf(rooms)
    const links = ['/etc/passwd', `${dataDir}/secret-key`, '../openclaw.json', '../secrets.json']
    await exec(id, links.map((to, at) => `ln -sf ${to} link-${at}`).join('; '))
    await exec(id, 'ln -sfn .. folder; ln -sfn / root; echo plain >plain.txt')
    const read = async (path: string) =>
      (await client.get(`/v1/instances/${id}/files/content?path=${encodeURIComponent(path)}`)).status
    expect(await read('plain.txt')).toBe(200)
    for (const path of ['link-0', 'link-1', 'link-2', 'link-3', 'folder/secrets.json', 'root/etc/passwd']) {
      expect([path, await read(path)]).toEqual([path, expect.toSatisfy((status: number) => status >= 400)])
    }
  })

  test('an agent without egress has no tool that runs at its model provider', async () => {
    const id = idOf('one_room')
    const { relay } = await targetFor(id)
    const ask = (tool: object) => exec(id, askModel(relay.url, [tool]))
    const setEgress = async (mode: string) => {
      expect((await client.patch(`/v1/instances/${id}`, { egress: { mode } })).status).toBe(200)
      await sleep(1000) // a change holds within a second
    }
    const search = { type: 'web_search_20250305', name: 'web_search' }
    expect(await ask(search), 'it passes while egress is open').toMatch(/ 200\W*$/)
    try {
      await setEgress('none')
      expect(await ask(search)).toMatch(/egress.* 400\W*$/s)
      expect(await ask({ name: 'web_search', input_schema: {} }), 'a tool of its own passes').toMatch(/ 200\W*$/)
    } finally {
      await setEgress('open')
    }
  })

  test('A11: an agent with two rooms plants no plugin for its gateway', async () => {
    const make = (folder: string) => `mkdir -p ${folder}/extensions && echo made`
    const command = `${make('.openclaw')}; mv .openclaw elsewhere && echo made; rm -rf .openclaw && echo made`
    expect(await exec(idOf('two_rooms'), command)).not.toContain('made')
    expect(await exec(idOf('two_rooms'), make('.other'))).toContain('made')
  })

  test('the ports on which an agent waits for the tokens of another bring it nothing', async () => {
    const squat = `perl -MIO::Socket::INET -e '
      my @s = map { IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => $_, Listen => 9) } 18789, 20000 .. 20100;
      my $r = ""; vec($r, fileno $_, 1) = 1 for grep { $_ } @s;
      print select($r, undef, undef, 6) ? "caught" : "waited in vain"'`
    tenant.take()
    expect(await exec(idOf('one_room'), squat)).toContain('waited in vain')
    expectTenantWell()
  })

  /**
   * How many processes of this host have a word in their environment or command line. The kernel keeps who reads that of
   * a fork bomb waiting: so many files are read at once, and one that cannot be read counts as one that has the word.
   */
  const processesWith = async (word: string) => {
    const look = 'timeout 20 grep --line-buffered -las "$PATTERN" "$@"; [ $? != 124 ] || echo "$1"'
    const search = `printf '%s\\n' /proc/[0-9]*/environ /proc/[0-9]*/cmdline | xargs -P 64 -n 8 sh -c '${look}' sh`
    const env = { PATH: '/usr/bin:/bin', PATTERN: `[${word[0]}]${word.slice(1)}` } // else the search finds itself
    const { stdout } = await run('sh', ['-c', `${search} | cut -d/ -f3 | sort -u | wc -l`], {
      env,
      timeout: 2 * minute,
    })
    return Number(stdout)
  }
  const newWord = () => `attack-${randomInt(2 ** 40).toString(36)}`
  const eventsOf = async (id: string): Promise<{ type: string; reason: string | null }[]> =>
    (await client.get(`/v1/instances/${id}/events?limit=1000`)).body
  /** How many events of a kind an agent has. */
  const countEvents = async (id: string, type: RegExp, reason: RegExp) =>
    (await eventsOf(id)).filter((event) => type.test(event.type) && reason.test(event.reason ?? '')).length
  /** Waits for one more event than there were. */
  const told = async (id: string, type: RegExp, reason: RegExp, before: number) => {
    const isTold = async () => (await countEvents(id, type, reason)) > before
    await until(`an event ${type} ${reason} of the attacked`, isTold, 2 * minute)
  }

  async function expectControlPlaneWell(): Promise<void> {
    expect((await client.get('/readyz')).body).toMatchObject({
      status: 'ready',
      checks: { database: true, queue: true, disk: true },
    })
    const [open = 0, , most = 0] = (await readFile('/proc/sys/fs/file-nr', 'utf8')).split('\t').map(Number)
    expect(open).toBeLessThan(most / 2)
  }

  async function order(id: string, verb: 'stop' | 'start', status: 'stopped' | 'running'): Promise<void> {
    // 409 while it starts.
    const isTaken = async () => (await client.post(`/v1/instances/${id}/${verb}`)).status < 300
    await until(`the ${verb} to be taken`, isTaken, 4 * minute)
    await waitForStatus(client, id, status, 4 * minute)
  }
  /** Stops an agent, after which nothing of it runs. */
  async function stopAttack(id: string, word: string): Promise<void> {
    await order(id, 'stop', 'stopped')
    expect(await processesWith(word)).toBe(0)
  }
  const statusOf = async (id: string): Promise<string> => (await client.get(`/v1/instances/${id}`)).body.status
  /** Whether an agent that does not start at the moment was given up, in place of being started again. */
  async function isGivenUp(id: string): Promise<boolean> {
    await until('the end of its start', async () => (await statusOf(id)) !== 'provisioning', 4 * minute)
    return (await statusOf(id)) === 'error'
  }
  async function waitForExec(id: string): Promise<void> {
    const works = () => exec(id, 'echo $((40 + 2))').catch(() => '')
    await until('the tool exec', async () => (await works()).includes('42'), 4 * minute)
  }
  async function startAgain(id: string): Promise<void> {
    await order(id, 'start', 'running')
    await waitForExec(id)
    attacking = null
  }
  /** The agent whose command goes on. */
  let attacking: string | null = null
  afterEach(async () => {
    const id = attacking
    if (id === null) return
    // The test has failed.
    if (!['stopped', 'error'].includes(await statusOf(id))) await order(id, 'stop', 'stopped')
    await startAgain(id)
  }, 8 * minute)

  const keepsMemory = uid === null
  async function exceedDisk(id: string, command: string): Promise<void> {
    const reason = /^disk: it uses 1\.\d of 1\.0 GB of disk/
    const before = await countEvents(id, /stop/, reason)
    await begin(id, command)
    await told(id, /stop/, reason, before)
    // It may write until its programs have ended.
    const stopped = await client.get(`/v1/instances/${id}/status?wait=stopped&timeout=60`)
    expect(stopped.body).toMatchObject({ status: 'stopped' })
    expect((await client.get(`/v1/instances/${id}`)).body).toMatchObject({ status: 'stopped', stopped_for: 'disk' })
    const removed = await client.delete(`/v1/instances/${id}/files?path=filled&recursive=true`)
    expect(removed.status, JSON.stringify(removed.body)).toBe(204)
    await startAgain(id)
  }

  const attacks = eachRooms.flatMap((rooms) =>
    exhaustingAttacks({ keepsMemory, hasOwnUser: uid === null })
      .filter(({ isAtGateway }) => !isAtGateway || rooms === 'one_room')
      .map((attack) => ({ rooms, ...attack })),
  )

  test.each(attacks)(
    'A7, F20: $name, by an agent with $rooms, fails no request of another tenant, and a stop ends it',
    { timeout: 20 * minute },
    async ({ of, rooms, refusal, command }) => {
      const id = idOf(rooms)
      await waitForExec(id)
      if (refusal) expect(await exec(id, refusal.command)).toMatch(refusal.shown)
      const word = newWord()
      const countHangs = () => countEvents(id, /gateway_ended/, /did not answer/)
      const hangs = await countHangs()
      const countEnds = () => countEvents(id, /gateway_ended/, /./)
      const ends = await countEnds()
      /**
       * An agent that leaves its own gateway no process or no watch is restarted, or given up at last: its attack is
       * over.
       */
      const isOver = async () =>
        (of === 'processes' && ((await countHangs()) > hangs || (await statusOf(id)) === 'error')) ||
        (of === 'watches' && (await countEnds()) > ends)
      tenant.take()
      const said = await begin(id, `export ATTACK=${word}; ${command}`)
      await tenant.enough()
      expectTenantWell()
      // The search is much work for the host.
      const isSeen = async () => (await processesWith(word)) > 0 || isOver()
      if (of !== 'memory' || keepsMemory)
        await until(`the attack, of which the agent said ${said.slice(0, 500)}, to go on`, isSeen, minute)
      await expectControlPlaneWell()
      if (of === 'output') {
        const longest = Math.max(...provider.requests.map(({ toolResults }) => toolResults.join('').length))
        expect(longest).toBeLessThan(1024 * 1024)
      }
      if (of === 'log') {
        const { body } = await client.get(`/v1/instances/${id}/logs?tail=10`)
        expect(JSON.stringify(body)).toContain('an endless log')
      }
      if (await isGivenUp(id)) expect(await processesWith(word)).toBe(0)
      else await stopAttack(id, word)
      if (of === 'log') {
        const kept = async () => Number(await onHost(`cat ${await logOf(id)}* | wc -c`))
        await until('a bounded log', async () => (await kept()) < 11 * 1024 * 1024)
      }
      await startAgain(id)
      if (of === 'disk') {
        await exceedDisk(id, fillDisk)
        // dockerd counts no empty file, and no deleted one. In a pod the room is not searched for those.
        if (!isDocker) await exceedDisk(id, fillWithFiles)
        if (!isDocker && !(isKubernetes && rooms === 'two_rooms')) await exceedDisk(id, fillDeleted)
      }
    },
  )

  /** The file with the output of a gateway. */
  async function logOf(id: string): Promise<string> {
    const cluster = inject('agentCluster')
    if (cluster !== null) return join(present(await volumeOfAgent(cluster, id)), 'gateway.log')
    const dockerHost = inject('agentDockerHost')
    if (dockerHost === null) return join(dataDir, 'sandboxes', id, 'gateway.log')
    const argv = ['--host', dockerHost, 'container', 'inspect', '-f', '{{.LogPath}}', `chowder-${id}`]
    return (await run('docker', argv)).stdout.trim()
  }

  test.each(eachRooms)(
    'A6: no program of an agent with %s outlives its stop',
    { timeout: 6 * minute },
    async (rooms) => {
      const id = idOf(rooms)
      const word = newWord()
      await exec(id, outlive(word))
      await until('the programs to run', async () => (await processesWith(word)) >= 4)
      await stopAttack(id, word)
      await startAgain(id)
      expect(await processesWith(word)).toBe(0)
    },
  )
})
