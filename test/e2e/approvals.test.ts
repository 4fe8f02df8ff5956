import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import OpenAI from 'openai'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { startAgent, type TestAgent } from '../support/agent.ts'
import { waitForStatus } from '../support/api-client.ts'
import { findGateway } from '../support/chowder-process.ts'
import { present } from '../support/present.ts'
import { faultsOfResponse } from '../support/response-schemas.ts'
import { until } from '../support/until.ts'

const model = 'openclaw'
const exec = (command: string) => `[[fake:tool=exec ${JSON.stringify({ command, yieldMs: 60_000 })}]] [[fake:say=done]]`

interface Approval {
  id: string
  status: string
  command: string
  reason: string | null
}
interface Delivery {
  type: string
  data: { subject: string; approve_url?: string }
}

describe('approvals of a real agent', () => {
  let agent: TestAgent
  let receiver: Server
  const received: Delivery[] = []
  beforeAll(async () => {
    receiver = createServer((request, response) => {
      let body = ''
      request.on('data', (chunk) => {
        body += chunk
      })
      request.on('end', () => {
        received.push(JSON.parse(body))
        response.end()
      })
    })
    await new Promise<void>((resolve) => receiver.listen(0, '127.0.0.1', resolve))
    const { port } = receiver.address() as AddressInfo
    agent = await startAgent({
      env: { EGRESS_ALLOWED_HOSTS: `127.0.0.1:${port}` },
      fields: { approvals: 'ask' },
    })
    const webhook = { url: `http://127.0.0.1:${port}/`, types: ['approval.*'] }
    expect((await agent.client.post('/v1/webhooks', webhook)).status).toBe(201)
  })
  afterAll(async () => {
    await agent?.close()
    receiver?.close()
  })

  const clientOf = (session: string) =>
    new OpenAI({
      baseURL: `${agent.chowder.url}/v1/instances/${agent.id}/session/${session}`,
      apiKey: agent.key,
      maxRetries: 0,
    })
  const path = () => `/v1/instances/${agent.id}/approvals`
  const list = async () => (await agent.client.get(path())).body as Approval[]
  const pending = (command: string) =>
    until('an approval to wait', async () =>
      (await list()).find((one) => one.status === 'pending' && one.command === command),
    )
  const answer = (id: string, body: object) => agent.client.post(`${path()}/${id}`, body)
  const read = async (id: string) => (await agent.client.get(`/v1/instances/${agent.id}/responses/${id}`)).body
  const ended = (id: string) =>
    until(
      'the response to end',
      async () => {
        const response = await read(id)
        return response.status !== 'queued' && response.status !== 'in_progress' && response
      },
      120_000,
    )
  const history = async (subject: string) => {
    const { body } = await agent.client.get(`/v1/instances/${agent.id}/events?type=approval.*`)
    return (body as { type: string; subject: string; reason: string; actor: { type: string } }[]).filter(
      (event) => event.subject === subject,
    )
  }
  const hasFile = async (name: string) =>
    (await agent.client.get(`/v1/instances/${agent.id}/files/download?path=${name}`)).status === 200

  it('show in the response, its stream, the list and the history; an approved command runs once', async () => {
    const stream = await clientOf('one').responses.create({
      model,
      input: exec('touch approved.txt'),
      background: true,
      stream: true,
    })
    const types: string[] = []
    let id = ''
    const whole = (async () => {
      for await (const event of stream) {
        types.push(event.type)
        if (event.type === 'response.created') id = event.response.id
      }
    })()
    const approval = await pending('touch approved.txt')
    expect(approval).toMatchObject({ status: 'pending', reason: null })
    await until('the stream to say so', () => types.includes('chowder:approval.requested'))
    const response = await until('the response to say so', async () => {
      const one = await read(id)
      return one.requires_action && one
    })
    expect(response).toMatchObject({
      status: 'in_progress',
      requires_action: { type: 'approval', approvals: [{ id: approval.id, command: 'touch approved.txt' }] },
    })
    expect(faultsOfResponse(response)).toEqual([])
    expect(await hasFile('approved.txt')).toBe(false)
    expect((await answer(approval.id, { decision: 'maybe' })).status).toBe(422)
    expect((await answer(approval.id, { decision: 'approve', reason: 'fine' })).body).toMatchObject({
      status: 'allowed',
      reason: 'user',
    })
    expect((await answer(approval.id, { decision: 'deny' })).body).toMatchObject({ status: 'allowed' })
    await whole
    expect(types).toContain('chowder:approval.resolved')
    expect(types.at(-1)).toBe('response.completed')
    expect(await read(id)).not.toHaveProperty('requires_action')
    expect(await hasFile('approved.txt')).toBe(true)
    const events = await history(approval.id)
    expect(events.filter(({ type }) => type === 'approval.requested')).toHaveLength(1)
    expect(events.find(({ type }) => type === 'approval.resolved')).toMatchObject({
      reason: 'allowed: fine',
      actor: { type: 'key' },
    })
  })

  it('are answered at the page of a webhook, which a GET does not do', async () => {
    const { id } = await clientOf('two').responses.create({ model, input: exec('touch denied.txt'), background: true })
    const approval = await pending('touch denied.txt')
    const { data } = await until('the webhook', () => received.find(({ data: { subject } }) => subject === approval.id))
    const url = present(data.approve_url)
    const page = await fetch(url)
    expect(page.status).toBe(200)
    expect(page.headers.get('content-security-policy')).toContain("default-src 'none'")
    expect(await page.text()).toContain('touch denied.txt')
    expect(await pending('touch denied.txt')).toMatchObject({ id: approval.id })
    const press = (decision: string) => fetch(url, { method: 'POST', body: new URLSearchParams({ decision }) })
    expect((await press('maybe')).status).toBe(400)
    expect(await (await press('deny')).text()).toContain('The command was denied.')
    expect(await (await press('approve')).text()).toContain('The command was denied.')
    expect((await fetch(`${url.slice(0, -4)}AAAA`)).status).toBe(404)
    expect(await ended(id)).toMatchObject({ status: 'completed' })
    expect(await hasFile('denied.txt')).toBe(false)
    expect((await history(approval.id)).map(({ type }) => type).sort()).toEqual([
      'approval.requested',
      'approval.resolved',
    ])
  })

  it.each([true, false])('hold up a turn in the foreground, streamed: %s', async (stream) => {
    const command = `touch foreground-${stream}.txt`
    const turn = clientOf(`foreground-${stream}`).responses.create({ model, input: exec(command), stream })
    const types: string[] = []
    const whole = turn.then(async (answered) => {
      if (Symbol.asyncIterator in answered) for await (const { type } of answered) types.push(type)
    })
    const approval = await pending(command)
    await until('the history to have it', async () => (await history(approval.id)).length === 1)
    await answer(approval.id, { decision: 'approve' })
    await whole
    expect(await hasFile(`foreground-${stream}.txt`)).toBe(true)
    if (stream) expect(types).toEqual(expect.arrayContaining(['chowder:approval.requested', 'response.completed']))
  })

  it('end with a turn that is cancelled', async () => {
    const { id } = await clientOf('cancelled').responses.create({
      model,
      input: exec('touch cancelled.txt'),
      background: true,
    })
    const approval = await pending('touch cancelled.txt')
    await agent.client.post(`/v1/instances/${agent.id}/responses/${id}/cancel`)
    await until('the approval to end', async () =>
      (await list()).some((one) => one.id === approval.id && one.status === 'cancelled'),
    )
    const event = await until('the event', async () =>
      (await history(approval.id)).find(({ type }) => type === 'approval.resolved'),
    )
    expect(event.reason).toMatch(/^cancelled/)
  })

  it('wait on while Chowder is killed and started again', async () => {
    const { id } = await clientOf('killed').responses.create({
      model,
      input: exec('touch after.txt'),
      background: true,
    })
    const approval = await pending('touch after.txt')
    await until('the event', async () => (await history(approval.id)).length === 1)
    await agent.chowder.kill('SIGKILL')
    await agent.startChowder()
    expect(await pending('touch after.txt')).toMatchObject({ id: approval.id })
    await answer(approval.id, { decision: 'approve' })
    expect(await ended(id)).toMatchObject({ status: 'completed' })
    expect(await hasFile('after.txt')).toBe(true)
    expect(await history(approval.id)).toHaveLength(2)
  })

  it('are cancelled by the end of the gateway', async () => {
    const { id } = await clientOf('gateway').responses.create({
      model,
      input: exec('touch never.txt'),
      background: true,
    })
    const approval = await pending('touch never.txt')
    process.kill(present(await findGateway(agent.id)).pid, 'SIGKILL')
    expect(await ended(id)).toMatchObject({ status: 'failed' })
    await until('the approval to end', async () =>
      (await list()).some((one) => one.id === approval.id && one.status === 'cancelled'),
    )
    const events = await until('the event', async () => {
      const found = await history(approval.id)
      return found.length === 2 && found
    })
    expect(events.find(({ type }) => type === 'approval.resolved')?.reason).toMatch(/^cancelled/)
    await waitForStatus(agent.client, agent.id, 'running')
    expect(await hasFile('never.txt')).toBe(false)
  })

  it('are not asked for compound commands, which are denied, nor with off', async () => {
    const run = async (session: string, command: string) => {
      const { status } = await clientOf(session).responses.create({ model, input: exec(command) })
      expect(status).toBe('completed')
    }
    const before = (await list()).length
    await run('compound', 'echo x > compound.txt; cat compound.txt')
    expect(await list()).toHaveLength(before)
    const off = await agent.client.patch(`/v1/instances/${agent.id}`, { approvals: 'off' })
    expect(off.body).toMatchObject({ approvals: 'off' })
    await run('off', 'touch off.txt')
    const auto = await agent.client.patch(`/v1/instances/${agent.id}`, { approvals: 'auto' })
    expect(auto.status).toBe(200)
    await run('auto', 'touch auto.txt')
    expect(await list()).toHaveLength(before)
    expect(await Promise.all(['compound.txt', 'off.txt', 'auto.txt'].map(hasFile))).toEqual([false, false, true])
  })
})
