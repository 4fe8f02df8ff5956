import { freePort } from '#platform/free-port.ts'
import { agentEnv } from './agent-sandboxes.ts'
import { type Answer, type Api, api, signUp, waitForStatus } from './api-client.ts'
import { searchInstallation } from './canary/installation.ts'
import { newSecret } from './canary/secrets.ts'
import { type ChowderProcess, makeDataDir, removeDataDir, startChowder } from './chowder-process.ts'
import { type FakeModelProvider, startFakeModelProvider } from './fake-model-provider.mjs'

export interface AgentOptions {
  /** Added to Chowder's settings. */
  env?: Record<string, string>
  /** Fields of the instance. */
  fields?: Record<string, unknown>
}

/** A Chowder as an operator runs it, with a model's provider and an organization that has one agent, which runs. */
export interface TestAgent {
  provider: FakeModelProvider
  chowder: ChowderProcess
  /** The organization's key. */
  key: string
  client: Api
  dataDir: string
  /** The answer to the creation of the instance. */
  created: Answer
  id: string
  /** Starts Chowder again after its end. `chowder` and `client` are those of the new one. */
  startChowder(): Promise<void>
  /** Looks for secrets in all of it, and ends Chowder and the agent as Ctrl-C does. Returns the exit code. */
  end(): Promise<number | null>
  /** Does the same unless it was done, ends the provider, and removes the data folder. */
  close(): Promise<void>
}

/** The key that the provider takes, and the organization has. */
export const providerKey = newSecret('provider key', 'sk-ant-')

/** Starts all of it; the agent takes some 10 s. When a part does not start, what had started is closed. */
export async function startAgent({ env = {}, fields = {} }: AgentOptions = {}): Promise<TestAgent> {
  const provider = await startFakeModelProvider({ apiKey: providerKey })
  const dataDir = await makeDataDir()
  const metricsPort = await freePort()
  let running: ChowderProcess | undefined
  const start = async () => {
    const ports = { METRICS_PORT: String(metricsPort) }
    running = await startChowder({ dataDir, env: { ...(await agentEnv(provider.url, dataDir)), ...ports, ...env } })
    return running
  }
  /** While all of it runs. */
  const search = async () => {
    const metrics = await fetch(`http://127.0.0.1:${metricsPort}/metrics`)
    const asked = provider.requests.map(({ body, system }) => JSON.stringify([body, system]))
    await searchInstallation(dataDir, {
      texts: { metrics: await metrics.text(), 'questions to the model': asked.join('\n') },
    })
  }
  const end = async () => {
    const ending = running
    running = undefined
    let code: number | null = null
    try {
      await search()
    } finally {
      code = (await ending?.kill('SIGINT')) ?? null
    }
    return code
  }
  const close = async () => {
    try {
      if (running) await end()
    } finally {
      await removeDataDir(dataDir)
      await provider.close()
    }
  }
  try {
    const chowder = await start()
    const key = await signUp(chowder.url, providerKey)
    const client = api(chowder.url, key)
    const openclaw_config = { 'hooks.token': newSecret('override secret'), ...(fields.openclaw_config as object) }
    const created = await client.post('/v1/instances', { name: 'my-assistant', ...fields, openclaw_config })
    const id: string = created.body.id
    await waitForStatus(client, id, 'running')
    const agent: TestAgent = {
      provider,
      chowder,
      key,
      client,
      dataDir,
      created,
      id,
      async startChowder() {
        agent.chowder = await start()
        agent.client = api(agent.chowder.url, key)
      },
      end,
      close,
    }
    return agent
  } catch (error) {
    await close().catch(() => {}) // the failed start is what the test reports
    throw error
  }
}
