import { afterAll, beforeAll, expect, it } from 'vitest'
import { type Api, api, say, sessionPath, signUp, waitForStatus } from '../support/api-client.ts'
import { newSecret } from '../support/canary/secrets.ts'
import { type ComposeCheckout, openComposeCheckout } from '../support/compose.ts'
import { startDockerd, type TestDockerd } from '../support/dockerd.ts'
import { type Outside, openOutside } from '../support/outside.ts'
import { isHere, previousVersion } from '../support/previous-version.ts'

const minute = 60_000
const port = 18_089
const url = `http://127.0.0.1:${port}`
const providerKey = newSecret('provider key', 'sk-ant-')
const support = (name: string) => new URL(`../support/${name}`, import.meta.url).pathname

let dockerd: TestDockerd
let outside: Outside
let checkout: ComposeCheckout
let client: Api
let agent: string

beforeAll(async () => {
  dockerd = await startDockerd()
  outside = await openOutside((at) => [support('fake-model-provider.mjs'), '--host', '0.0.0.0', '--port', String(at)])
  const { NODE_EXTRA_CA_CERTS } = process.env
  const settings = {
    CHOWDER_PORT: String(port),
    ANTHROPIC_BASE_URL: `http://${outside.address}:${outside.port}`,
    ...(NODE_EXTRA_CA_CERTS && { DOCKER_EXTRA_CA_FILE: NODE_EXTRA_CA_CERTS }),
  }
  checkout = await openComposeCheckout(dockerd, settings, previousVersion)
  await checkout.compose('up', '-d', '--wait')
  const token = await checkout.compose('exec', '-T', 'api', 'node', 'src/commands/admin.ts', 'signup-token')
  client = api(url, await signUp(url, providerKey, token.trim()))
  agent = (await client.post('/v1/instances', { name: 'my-assistant' })).body.id
  await waitForStatus(client, agent, 'running', 15 * minute)
}, 25 * minute)

afterAll(async () => {
  await checkout?.close()
  await outside?.close()
  await dockerd?.close()
}, 5 * minute)

const startOf = () => dockerd.docker('inspect', '--format', '{{.Id}} {{.State.StartedAt}}', `chowder-${agent}`)
const configuration = () => dockerd.docker('exec', `chowder-${agent}`, 'cat', '/agent/home/state/openclaw.json')

it.skipIf(!(await isHere(previousVersion)))(
  'an agent of the previous version goes on after the upgrade, and after its next start',
  { tags: ['long'], timeout: 10 * minute },
  async () => {
    expect(await say(client, sessionPath(agent), 'hello')).toContain('turns=1')
    const before = await startOf()
    await checkout.replace()
    await checkout.upgrade()
    expect(await say(client, sessionPath(agent), 'and now?')).toContain('turns=2')
    expect(await configuration()).not.toContain(providerKey)
    expect(await startOf()).toBe(before)

    expect((await client.post(`/v1/instances/${agent}/restart`)).status).toBeOneOf([200, 201, 202, 204])
    await waitForStatus(client, agent, 'running')
    expect(await say(client, sessionPath(agent), 'and here?')).toContain('turns=3')
  },
)
