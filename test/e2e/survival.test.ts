import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest'
import { agentEnv } from '../support/agent-sandboxes.ts'
import { type Api, api, say, sessionPath, signUp, waitForStatus } from '../support/api-client.ts'
import {
  type ChowderProcess,
  findGateway,
  type GatewayProcess,
  makeDataDir,
  processesIn,
  removeDataDir,
  startChowder,
} from '../support/chowder-process.ts'
import { type FakeModelProvider, startFakeModelProvider } from '../support/fake-model-provider.mjs'
import { until } from '../support/until.ts'

const inspector = '127.0.0.1:9229'

/** Has a process of Node.js run a script, and does not wait for its end. */
async function evaluateIn(pid: number, expression: string): Promise<void> {
  process.kill(pid, 'SIGUSR1')
  const list = () => fetch(`http://${inspector}/json`).then((answer) => answer.json(), () => null) // biome-ignore format: short
  const [{ webSocketDebuggerUrl }] = (await until('the inspector', list)) as [{ webSocketDebuggerUrl: string }]
  const socket = new WebSocket(webSocketDebuggerUrl)
  await new Promise((resolve) => socket.addEventListener('open', resolve, { once: true }))
  socket.send(JSON.stringify({ id: 1, method: 'Runtime.evaluate', params: { expression } }))
  await sleep(500) // closed earlier, the script would not begin
  socket.close()
}

describe('an agent and the end of its control plane', () => {
  let provider: FakeModelProvider
  let dataDir: string
  let chowder: ChowderProcess
  let key: string
  let client: Api
  let id: string
  let gateway: GatewayProcess
  let turns = 0

  const start = async () => {
    chowder = await startChowder({ dataDir, env: await agentEnv(provider.url) })
  }

  beforeAll(async () => {
    provider = await startFakeModelProvider()
    dataDir = await makeDataDir()
    await start()
    key = await signUp(chowder.url, 'sk-ant-test')
    client = api(chowder.url, key)
    id = (await client.post('/v1/instances', { name: 'survivor' })).body.id
    await waitForStatus(client, id, 'running')
    gateway = await runningGateway()
    await expectMemory()
  })

  afterAll(async () => {
    await chowder?.kill('SIGINT')
    await removeDataDir(dataDir)
    await provider?.close()
  })

  async function runningGateway(): Promise<GatewayProcess> {
    const found = await findGateway(id)
    if (!found) throw new Error('no gateway process')
    return found
  }

  /** Each turn is remembered by the next, whatever happened between the two. */
  async function expectMemory(): Promise<void> {
    turns += 1
    expect(await say(client, sessionPath(id), `turn ${turns}`)).toContain(`turns=${turns} last="turn ${turns}"`)
  }

  /** The same process, not only the same instance, and it answers without Chowder. */
  async function expectAlive(): Promise<void> {
    const answer = await fetch(`http://127.0.0.1:${gateway.port}/healthz`, { signal: AbortSignal.timeout(10_000) })
    expect(answer.status).toBe(200)
    expect(await findGateway(id)).toEqual(gateway)
  }

  /** Starts Chowder again, which must find its agent running: nothing is started, nothing is repaired. */
  async function expectAdoption(): Promise<void> {
    await start()
    client = api(chowder.url, key)
    expect((await client.get(`/v1/instances/${id}/status`)).body.status).toBe('running')
    await expectMemory()
    expect(await findGateway(id)).toEqual(gateway)
  }

  const postmaster = async () =>
    Number((await readFile(join(dataDir, 'postgres/data/postmaster.pid'), 'utf8')).split('\n')[0])

  it('kill -9 of Chowder: the agent lives, and the next start adopts it', { tags: ['long'] }, async () => {
    await chowder.kill('SIGKILL')
    await expectAlive()
    await expectAdoption()
  })

  it('kill -9 of Chowder and its database: the same', async () => {
    process.kill(await postmaster(), 'SIGKILL')
    await chowder.kill('SIGKILL')
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
    expect(await chowder.kill('SIGTERM')).toBe(0)
    await expectAlive()
    expect(await processesIn(join(dataDir, 'postgres'))).toEqual([])
    await expectAdoption()
  })

  const isInContainer = inject('agentDockerHost') !== null

  // The chaos suite has gateways that work for longer.
  it.skipIf(isInContainer)(
    'a minute in which its event loop is taken: the agent is busy, and answers then',
    { tags: ['long'] },
    async () => {
      const end = Date.now() + 60_000
      await evaluateIn(gateway.pid, `while (Date.now() < ${end});`)
      const statusOf = async () => (await client.get(`/v1/instances/${id}/status`)).body
      await until('it to be shown', async () => (await statusOf()).step === 'busy', 50_000)
      expect(await statusOf()).toMatchObject({ status: 'running' })
      await expectMemory()
      expect(Date.now()).toBeGreaterThan(end - 1000)
      await expectAlive()
      await until('it to be settled', async () => (await statusOf()).step === null, 30_000)
    },
  )

  it.skipIf(isInContainer)('SIGINT ends the agent too', async () => {
    expect(await chowder.kill('SIGINT')).toBe(0)
    expect(await processesIn(dataDir)).toEqual([])
  })

  it.skipIf(isInContainer)('and the next start brings it back with its memory', { tags: ['long'] }, async () => {
    await start()
    client = api(chowder.url, key)
    await waitForStatus(client, id, 'running')
    gateway = await runningGateway()
    await expectMemory()
  })

  it.runIf(isInContainer)('SIGINT leaves an agent in a container as it is', async () => {
    expect(await chowder.kill('SIGINT')).toBe(0)
    await expectAlive()
    await expectAdoption()
  })
})
