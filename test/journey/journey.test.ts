import { execFile } from 'node:child_process'
import { access, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { providerKey, startAgent, type TestAgent } from '../support/agent.ts'
import { type Api, api, type StreamEvent, say, sessionPath, waitForStatus } from '../support/api-client.ts'
import { askGateway, findGateway, type GatewayProcess } from '../support/chowder-process.ts'
import type { FakeModelProvider } from '../support/fake-model-provider.mjs'
import { readGatewayTokens, relayAnswer } from '../support/gateway-tokens.ts'
import { present } from '../support/present.ts'
import { processesIn } from '../support/run-folder.ts'
import { until } from '../support/until.ts'

const exists = (path: string) =>
  access(path).then(
    () => true,
    () => false,
  )

/** The command lines of the processes of a sandbox. */
const commandsIn = async (sandbox: string): Promise<string[]> =>
  Promise.all(
    (await processesIn(sandbox)).map(async (pid) => {
      const command = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')
      return command.replaceAll('\0', ' ').trim()
    }),
  )

const evaluate = `
  const list = () => fetch('http://127.0.0.1:9229/json').then((answer) => answer.json(), () => null)
  let found
  while (!(found = await list())) await new Promise((resolve) => setTimeout(resolve, 100))
  const socket = new WebSocket(found[0].webSocketDebuggerUrl)
  await new Promise((resolve) => socket.addEventListener('open', resolve, { once: true }))
  socket.send(JSON.stringify({ id: 1, method: 'Runtime.evaluate', params: { expression: process.argv[1] } }))
  await new Promise((resolve) => setTimeout(resolve, 500)) // closed earlier, the script would not begin
  socket.close()`

/** Has a process of Node.js run a script, and does not wait for its end. */
async function evaluateIn(pid: number, expression: string): Promise<void> {
  process.kill(pid, 'SIGUSR1')
  const inNetwork = process.getuid?.() === 0 ? ['nsenter', '-t', String(pid), '--net', '--'] : []
  const [program = '', ...args] = [...inNetwork, process.execPath, '--input-type=module', '-e', evaluate, expression]
  await promisify(execFile)(program, args, { timeout: 30_000 })
}

describe('from npm start to the end of a real agent', () => {
  let provider: FakeModelProvider
  let agent: TestAgent
  let client: Api
  let id: string
  let path: string

  beforeAll(async () => {
    agent = await startAgent({
      fields: { openclaw_config: { 'agents.defaults.model.primary': 'anthropic/model-at-create' } },
    })
    ;({ provider, client, id } = agent)
    path = `/v1/instances/${id}`
  })

  afterAll(() => agent?.close())

  /** The system prompt that the model got in a new session. */
  async function systemTextOf(session: string): Promise<string> {
    await say(client, sessionPath(id, session), `question of ${session}`)
    return provider.requests.findLast(({ last }) => last === `question of ${session}`)?.system ?? ''
  }

  it('starts with the configuration that it was created with', async () => {
    expect(await say(client, sessionPath(id), 'remember this')).toContain('turns=1 last="remember this"')
    expect(await say(client, sessionPath(id, 'created'), 'hello')).toContain('model=model-at-create')
  })

  it('shows its output without the key of its provider, and what it uses', async () => {
    const { body: lines } = await client.get(`${path}/logs?tail=1000`)
    expect(lines).toContainEqual({ text: expect.stringContaining('[gateway] http server listening'), truncated: false })
    expect(JSON.stringify(lines)).not.toContain(providerKey)
    const { body: used } = await client.get(`${path}/metrics`)
    expect(used).toMatchObject({ restarts: 0 })
    expect([null, 2048 * 1024 * 1024]).toContain(used.memory_limit_bytes) // without control groups there is no limit
    expect(used.memory_bytes).toBeGreaterThan(200e6)
    expect(used.cpu_seconds).toBeGreaterThan(1)
    expect(used.processes).toBeGreaterThan(1)
    expect(used.disk_bytes).toBeGreaterThan(1e6)
    expect(Date.now() - Date.parse(used.since)).toBeLessThan(10 * 60_000)
  })

  it('streams its answer to a key that may only talk to it', async () => {
    const grant = { name: 'chat', instance_ids: [id], permissions: ['interact'] }
    const { body } = await client.post('/v1/keys', grant)
    const guest = api(agent.chowder.url, body.raw_key)
    expect((await guest.get(path)).status).toBe(403)
    const events: StreamEvent[] = []
    const said = { model: 'openclaw', input: 'hello from a guest' }
    for await (const event of guest.stream(sessionPath(id, 'guest'), said, AbortSignal.timeout(60_000)))
      events.push(event)
    const deltas = events.filter(({ name }) => name === 'response.output_text.delta')
    const text = deltas.map(({ data }) => JSON.parse(data).delta).join('')
    expect(text).toContain('turns=1 last="hello from a guest"')
    expect(events.at(-1)?.data).toBe('[DONE]')
  })

  it('reads the compile cache that all agents of its release share, and cannot write to it', async () => {
    const command = 'cd "$NODE_COMPILE_CACHE"/*-$(id -u) && ls | wc -l && touch planted 2>&1'
    const answer = await say(client, sessionPath(id, 'cache'), `[[fake:tool=exec ${JSON.stringify({ command })}]]`)
    const [, files, refusal] = /tool-result="(\d+)\\ntouch: (.*)/.exec(answer) ?? []
    expect(Number(files)).toBeGreaterThan(1000)
    expect(refusal).toMatch(/Permission denied|Read-only file system/)
  })

  it('takes a changed configuration while it runs, nested or as dot paths, and answers by it', async () => {
    const before = await findGateway(id)
    const nested = { agent: { system_prompt: 'You are a crab called Nested.' } }
    const patched = await client.patch(path, { openclaw_config: nested })
    expect(patched.status).toBe(200)
    expect(patched.body).toMatchObject({ status: 'running', openclaw_config: nested })
    expect(await systemTextOf('nested')).toContain('You are a crab called Nested.')
    // A setting that the new configuration does not name is as if it had never been set.
    expect(await say(client, sessionPath(id, 'default-model'), 'hello')).not.toContain('model=model-at-create')
    expect((await client.patch(path, { openclaw_config: null })).status).toBe(200)
    expect(await systemTextOf('removed')).not.toContain('Nested')

    const fields = { model: 'model-by-field', instructions: 'You are a crab called Field.' }
    expect(await client.patch(path, fields)).toMatchObject({ status: 200, body: { status: 'running', ...fields } })
    expect(await systemTextOf('field')).toContain('You are a crab called Field.')
    expect(await say(client, sessionPath(id, 'field-model'), 'hello')).toContain('model=model-by-field')
    expect((await client.patch(path, { model: null, instructions: null })).status).toBe(200)

    const dotted = {
      'agent.system_prompt': 'You are a crab called Dotted.',
      'agents.defaults.model.primary': 'anthropic/model-by-dots',
    }
    const again = await client.patch(path, { openclaw_config: dotted })
    expect(again.status).toBe(200)
    expect(again.body.openclaw_config).toEqual(dotted)
    const system = await systemTextOf('dotted')
    expect(system).toContain('You are a crab called Dotted.')
    expect(system).not.toContain('Nested')
    expect(await say(client, sessionPath(id, 'model'), 'hello')).toContain('model=model-by-dots')
    expect((await findGateway(id))?.pid).toBe(before?.pid)
  })

  it('a configuration that OpenClaw refuses is a 400 with its words, and all stays as it was', async () => {
    const before = (await client.get(path)).body
    for (const config of [{ agents: { defaults: { nonsense: 1 } } }, { 'agents.defaults.model': 42 }]) {
      const refused = await client.patch(path, { openclaw_config: config })
      expect(refused.status).toBe(400)
      expect(refused.body.detail).toMatch(/OpenClaw refused the configuration: .*agents\.defaults/)
    }
    expect((await client.get(path)).body).toEqual(before)
    expect(await say(client, sessionPath(id, 'after-refusal'), 'hello')).toContain('model=model-by-dots')
  })

  it("a configuration that would reach Chowder's own settings is a 400 that names the path", async () => {
    for (const config of [
      { 'gateway.port': 1 },
      { gateway: { auth: { mode: 'none' } } },
      { models: { providers: {} } },
    ]) {
      const refused = await client.patch(path, { openclaw_config: config })
      expect(refused.status).toBe(400)
      expect(refused.body.detail).toMatch(/gateway|models\.providers/)
    }
  })

  it('a stop ends the process and refuses messages; a start brings it back with its memory, the newest configuration and other tokens', async () => {
    const tokensBefore = await readGatewayTokens(id)
    expect(await relayAnswer(tokensBefore)).toBe(200)
    const stopped = await client.post(`${path}/stop`)
    expect(stopped).toMatchObject({
      status: 200,
      body: { status: 'stopped', gateway_url: `${agent.chowder.url}${path}` },
    })
    expect(await findGateway(id)).toBeNull()
    const refused = await client.post(sessionPath(id), { model: 'openclaw', input: 'hello' })
    expect(refused.status).toBe(409)
    expect(refused.body.detail).toContain('stopped')
    expect((await client.post(`${path}/stop`)).status).toBe(409)

    const config = { 'agents.defaults.model.primary': 'anthropic/model-set-while-stopped' }
    expect((await client.patch(path, { openclaw_config: config })).status).toBe(200)

    const started = await client.post(`${path}/start`)
    // A start that takes over a minute, on a machine as busy as that, is answered while it is under way.
    const status = started.status === 202 ? 'provisioning' : 'running'
    expect(started).toMatchObject({ status: status === 'running' ? 200 : 202, body: { status, error_message: null } })
    await waitForStatus(client, id, 'running')
    expect((await client.post(`${path}/start`)).status).toBe(409)
    const answer = await say(client, sessionPath(id), 'what did I say?')
    expect(answer).toContain('turns=2 last="what did I say?" first="remember this"')
    expect(await say(client, sessionPath(id, 'restarted'), 'hello')).toContain('model=model-set-while-stopped')

    const tokens = await readGatewayTokens(id)
    expect(tokens.token).not.toBe(tokensBefore.token)
    expect(tokens.gatewayToken).toMatch(/^[0-9a-f]{64}$/)
    expect(tokens.gatewayToken).not.toBe(tokensBefore.gatewayToken)
    expect(tokens.baseUrl).toBe(tokensBefore.baseUrl)
    expect(await relayAnswer(tokensBefore)).toBe(503) // a 401 would put the provider's key on hold
  })

  it('a gateway that is killed comes back by itself, with its memory', { tags: ['long'] }, async () => {
    const killed = await findGateway(id)
    process.kill(killed?.pid ?? 0, 'SIGKILL')
    const next = await until(
      'another gateway process',
      async () => {
        const found = await findGateway(id)
        return found?.pid === killed?.pid ? null : found
      },
      60_000,
    )
    expect(next.uid).toBe(killed?.uid)
    await waitForStatus(client, id, 'running')
    expect(await say(client, sessionPath(id), 'are you back?')).toContain('turns=3 last="are you back?"')
  })

  it('a restart is another process with the same memory', { tags: ['long'] }, async () => {
    const before = await findGateway(id)
    expect((await client.post(`${path}/restart?wait=60`)).status).toBe(200)
    await waitForStatus(client, id, 'running')
    const after = await findGateway(id)
    expect([after?.pid === before?.pid, after?.uid]).toEqual([false, before?.uid])
    expect(await say(client, sessionPath(id), 'and now?')).toContain('turns=4 last="and now?" first="remember this"')
  })

  describe('while its control plane ends and starts', () => {
    let gateway: GatewayProcess
    let turns = 0

    beforeAll(async () => {
      gateway = present(await findGateway(id))
      await expectMemory()
    })

    /** Each turn is remembered by the next, whatever happened between the two. */
    async function expectMemory(): Promise<void> {
      turns += 1
      expect(await say(client, sessionPath(id, 'survivor'), `turn ${turns}`)).toContain(
        `turns=${turns} last="turn ${turns}"`,
      )
    }

    /** The same process, not only the same instance, and it answers without Chowder. */
    async function expectAlive(): Promise<void> {
      const answer = await askGateway(gateway, '/healthz', { signal: AbortSignal.timeout(10_000) })
      expect(answer.status).toBe(200)
      expect(await findGateway(id)).toEqual(gateway)
    }

    /** Starts Chowder again, which must find its agent running: nothing is started, nothing is repaired. */
    async function expectAdoption(): Promise<void> {
      await agent.startChowder()
      client = agent.client
      expect((await client.get(`${path}/status`)).body.status).toBe('running')
      await expectMemory()
      expect(await findGateway(id)).toEqual(gateway)
    }

    const postmaster = async () =>
      Number((await readFile(join(agent.dataDir, 'postgres/data/postmaster.pid'), 'utf8')).split('\n')[0])

    it('kill -9 of Chowder: the agent lives, and the next start adopts it', { tags: ['long'] }, async () => {
      await agent.chowder.kill('SIGKILL')
      await expectAlive()
      await expectAdoption()
    })

    it('kill -9 of Chowder and its database: the same', async () => {
      process.kill(await postmaster(), 'SIGKILL')
      await agent.chowder.kill('SIGKILL')
      await expectAlive()
      await expectAdoption()
    })

    it('kill -9 of the database alone: Chowder starts it again', async () => {
      const killed = await postmaster()
      process.kill(killed, 'SIGKILL')
      await until('another postmaster', async () => ![0, killed].includes(await postmaster().catch(() => 0)), 30_000)
      // Backends of the killed one answer for a moment, so this alone would say nothing.
      await until('the database to answer', async () => (await client.get('/v1/organization')).status === 200, 30_000)
      await expectMemory()
      await expectAlive()
    })

    it('SIGTERM: Chowder and its database end, the agent lives, and the next start adopts it', async () => {
      expect(await agent.chowder.kill('SIGTERM')).toBe(0)
      await expectAlive()
      expect(await processesIn(join(agent.dataDir, 'postgres'))).toEqual([])
      await expectAdoption()
    })

    // The chaos suite has gateways that work for longer.
    it('a minute in which its event loop is taken: the agent is busy, and answers then', {
      tags: ['long'],
    }, async () => {
      const end = Date.now() + 60_000
      await evaluateIn(gateway.pid, `while (Date.now() < ${end});`)
      const statusOf = async () => (await client.get(`${path}/status`)).body
      await until('it to be shown', async () => (await statusOf()).step === 'busy', 50_000)
      expect(await statusOf()).toMatchObject({ status: 'running' })
      await expectMemory()
      expect(Date.now()).toBeGreaterThan(end - 1000)
      await expectAlive()
      await until('it to be settled', async () => (await statusOf()).step === null, 30_000)
    })
  })

  it('a delete leaves no process, no file and no way back', async () => {
    const gateway = await findGateway(id)
    if (!gateway) throw new Error('the agent does not run')
    expect(await exists(gateway.home)).toBe(true)
    const orphan = 'sleep 86399'
    // What has not left the session of the command when that ends may end with it.
    const command = `setsid -f ${orphan} >/dev/null 2>&1; sleep 1`
    await say(client, sessionPath(id, 'tool'), `[[fake:tool=exec ${JSON.stringify({ command })}]]`)
    // Nobody's child, and in no group of the gateway's.
    await until('the orphan', async () => (await commandsIn(gateway.sandbox)).includes(orphan))
    expect((await client.delete(path)).status).toBe(204)
    expect((await client.get(path)).body).toMatchObject({ status: 'terminated' })
    expect((await client.get('/v1/instances')).body).toEqual([])
    await until('the end of the folder', async () => !(await exists(gateway.home)), 30_000)
    expect(await findGateway(id)).toBeNull()
    expect(await commandsIn(gateway.sandbox)).toEqual([])

    expect((await client.delete(path)).status).toBe(204)
    expect((await client.get('/v1/organization')).body.instance_count).toBe(0)
    expect((await client.post(`${path}/start`)).status).toBe(409)
    expect((await client.post(sessionPath(id), { model: 'openclaw', input: 'hello' })).status).toBe(409)
  })
})
