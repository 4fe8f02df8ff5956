import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { describe, expect, it } from 'vitest'
import { providerKey, type TestAgent } from '../support/agent.ts'
import { say, sessionPath } from '../support/api-client.ts'
import { newSecret } from '../support/canary/secrets.ts'
import { readGatewayTokens, relayAnswer } from '../support/gateway-tokens.ts'
import { until } from '../support/until.ts'

/** The tests of the relay: any agent will do, which other tests may have asked before. */
export function describeRelay(agentOf: () => TestAgent): void {
  const setKey = async (anthropic: string | null) => {
    const { status } = await agentOf().client.patch('/v1/organization', { model_api_keys: { anthropic } })
    expect(status).toBe(200)
  }

  describe('the relay of a real agent', () => {
    it('a turn is answered with the key of the organization, which is nowhere in the sandbox', async () => {
      const { client, id, provider } = agentOf()
      provider.requests.length = 0
      expect(await say(client, sessionPath(id, 'relayed'), 'hello')).toContain('last="hello"')
      expect(provider.requests.map(({ key }) => key)).toEqual([providerKey])
      // OpenClaw sends it by itself at the vendor's own host only.
      expect(provider.requests[0]?.headers).toHaveProperty(
        'anthropic-beta',
        expect.stringContaining('interleaved-thinking'),
      )

      // As the agent sees it: its configuration, all of its files and variables. The transcript has this pattern itself.
      const pattern = providerKey.replace(/^(.*)(\w)\W+$/, '$1[$2]')
      const look = `grep baseUrl "$HOME/../state/openclaw.json"; grep -r "${pattern}" "$HOME/.." && echo FOUND; env`
      await say(client, sessionPath(id, 'look'), `[[fake:tool=exec ${JSON.stringify({ command: look })}]]`)
      const shown = provider.requests.flatMap(({ toolResults }) => toolResults).join('\n')
      expect(shown).toContain('/relay/anthropic')
      expect(shown).not.toContain('FOUND')
      expect(shown).not.toContain(providerKey)

      const { home, token } = await readGatewayTokens(id)
      const found = await promisify(execFile)('grep', ['-rlF', providerKey, home]).catch(({ code }) => code)
      expect(found).toBe(1) // nothing
      expect(token).toMatch(/^[0-9a-f]{64}$/)
      expect(agentOf().chowder.output()).not.toContain(token)
    })

    it('a changed key is not noticed by a turn that streams, and is used by the next one', async () => {
      const { client, id, provider } = agentOf()
      const input = '[[fake:words=120]] [[fake:chunk-delay=30]]'
      const changed = newSecret('provider key', 'sk-ant-')
      const names: (string | null)[] = []
      try {
        for await (const { name } of client.stream(
          sessionPath(id, 'streams'),
          { model: 'openclaw', input },
          AbortSignal.timeout(60_000),
        )) {
          if (name === 'response.output_text.delta' && !names.includes(name)) {
            provider.apiKey = changed
            await setKey(changed)
          }
          names.push(name)
        }
        expect(names).toContain('response.completed')
        expect(await say(client, sessionPath(id, 'next'), 'after the change')).toContain('last="after the change"')
        expect(provider.requests.at(-1)?.key).toBe(changed)
      } finally {
        provider.apiKey = providerKey
        await setKey(providerKey)
      }
    })

    it('a removed key stops the next call', async () => {
      const { client, id, provider } = agentOf()
      await setKey(null)
      const asked = provider.requests.length
      await until('the key to be gone', async () => (await relayAnswer(await readGatewayTokens(id))) === 401, 2000)
      const { status, body } = await client.post(sessionPath(id, 'no-key'), { model: 'openclaw', input: 'hello' })
      expect([status, body.error.code]).toEqual([502, 'provider_key_refused'])
      expect(body.detail.error ?? body.detail).toContain('has no anthropic key')
      expect(provider.requests).toHaveLength(asked)
      await setKey(providerKey)
      expect(await say(client, sessionPath(id, 'no-key'), 'again')).toContain('last="again"')
    })
  })
}
