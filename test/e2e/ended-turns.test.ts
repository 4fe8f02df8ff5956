import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { startAgent, type TestAgent } from '../support/agent.ts'
import { waitForStatus } from '../support/api-client.ts'
import { until } from '../support/until.ts'

/** Turns of a real agent that end because of what else its owner does, or because of their size. */
describe('a turn that ends early says why', () => {
  let agent: TestAgent
  beforeAll(async () => {
    agent = await startAgent()
  })
  afterAll(() => agent?.close())

  const call = async (method: string, path: string, body?: object) => {
    const answer = await fetch(`${agent.chowder.url}/v1/instances/${agent.id}${path}`, {
      method,
      headers: { authorization: `Bearer ${agent.key}`, ...(body && { 'content-type': 'application/json' }) },
      ...(body && { body: JSON.stringify(body) }),
    })
    return { status: answer.status, text: await answer.text() }
  }
  const send = (session: string, input: string, stream = false) =>
    call('POST', `/session/${session}/responses`, { model: 'openclaw', input, stream })
  /** The status and the code of a failed turn; the status of a stream is 200. */
  const ending = ({ status, text }: { status: number; text: string }) => [
    status,
    /"code":"([a-z_]+)"/.exec(text)?.[1] ?? text,
  ]
  const isAsked = (input: string) =>
    until('the model to be asked', () => agent.provider.requests.some(({ last }) => last.startsWith(input)))
  const slow = (input: string) => `${input} [[fake:delay=20000]]`

  test.each([false, true])('M3: its provider finds the request too large, streamed: %s', async (stream) => {
    const typed = await send('large', 'x [[fake:status=413]]', stream)
    const untyped = await send('large', 'x [[fake:status=413]] [[fake:type=api_error]]', stream)
    const expected = [stream ? 200 : 413, 'provider_request_too_large']
    expect([ending(typed), ending(untyped)]).toEqual([expected, expected])
  })

  describe.each([
    ['DELETE', ''],
    ['POST', '/reset'],
  ] as const)('M2: %s …/sessions/{session_id}%s', (method, path) => {
    test.each([false, true])('during the turn, streamed: %s', async (stream) => {
      const session = `gone-${method}-${stream}`
      await send(session, 'hello')
      const turn = send(session, slow(session), stream)
      await isAsked(session)
      expect((await call(method, `/sessions/${session}${path}`)).status).toBe(204)
      expect(ending(await turn)).toEqual([stream ? 200 : 409, 'session_reset'])
      expect((await send(session, 'hello again')).text).toContain('turns=1')
    })
  })

  test('M2: of several such calls at once, each is done, finds no session, or is a 409', async () => {
    for (const session of ['two-a', 'two-b', 'two-c']) {
      await send(session, 'hello')
      const turn = send(session, slow(session))
      await isAsked(session)
      const calls = [call('DELETE', `/sessions/${session}`), call('POST', `/sessions/${session}/reset`)]
      const statuses = (await Promise.all(calls)).map(({ status }) => status)
      expect(statuses).toContain(204)
      expect(statuses.filter((status) => ![204, 404, 409].includes(status))).toEqual([])
      expect(ending(await turn)).toEqual([409, 'session_reset'])
    }
  })

  test('a stop during turns is a clean end for OpenClaw', async () => {
    const turns = [send('stopped', slow('stopped')), send('stopped-too', slow('stopped-too'))]
    await isAsked('stopped-too')
    await call('POST', '/stop')
    await waitForStatus(agent.client, agent.id, 'stopped')
    await until('the gateway to end', async () => JSON.parse((await call('GET', '/status')).text).step === null)
    await Promise.all(turns)
    const state = join(agent.dataDir, 'sandboxes', agent.id, 'home/state/state/openclaw.sqlite')
    using database = new DatabaseSync(state, { readOnly: true })
    const boots = database.prepare('SELECT outcome FROM gateway_boot_lifecycle').all()
    expect(boots).toEqual([{ outcome: 'clean_stop' }])
    await call('POST', '/start')
    await waitForStatus(agent.client, agent.id, 'running')
  })

  // At these ages a turn has not asked its model, is about to, or waits for it.
  test.each([
    ['stop', 0, [409, 'instance_stopping']],
    ['restart', 300, [503, 'instance_restarting']],
    ['stop', 1000, [409, 'instance_stopping']],
    ['restart', 2500, [503, 'instance_restarting']],
  ] as const)('M1: %s %i ms after it began, and no key is blamed', async (action, ageMs, expected) => {
    const turns = [send('early', slow('early')), send('early-streamed', slow('early'), true)]
    await sleep(ageMs)
    expect((await call('POST', `/${action}`)).status).toBe(200)
    const [plain, streamed] = (await Promise.all(turns)).map(ending)
    if (action === 'stop') await call('POST', '/start')
    await waitForStatus(agent.client, agent.id, 'running')
    const other = await send('another', 'hello')
    expect([other.status, other.text.includes('fake-reply')]).toEqual([200, true])
    // A turn that has not reached its agent yet is refused as any other one is.
    const [, code] = expected
    expect([expected, [409, 'instance_not_running']]).toContainEqual(plain)
    expect([
      [200, code],
      [409, 'instance_not_running'],
    ]).toContainEqual(streamed)
  })
})
