import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { startAgent, type TestAgent } from '../support/agent.ts'
import { type Api, say, sessionPath } from '../support/api-client.ts'
import type { ChowderProcess } from '../support/chowder-process.ts'
import { until } from '../support/until.ts'

describe('the sessions of a real agent', () => {
  let agent: TestAgent
  let chowder: ChowderProcess
  let client: Api
  let id: string

  const path = (session = '') => `/v1/instances/${id}/sessions${session && `/${encodeURIComponent(session)}`}`
  const tell = (session: string, text: string) => say(client, sessionPath(id, session), text)
  const listed = async () => (await client.get(path())).body.map((session: { id: string }) => session.id)
  const contents = async (session: string) =>
    (await client.get(path(session))).body.messages.map(({ content }: { content: string }) => content)

  beforeAll(async () => {
    agent = await startAgent()
    ;({ chowder, client, id } = agent)
    await tell('user-42', 'first')
    await tell('user-42', 'second')
    await tell('Grüße 🦞/%', 'third')
    await tell('main', 'fourth')
  })

  afterAll(() => agent?.close())

  it('are listed by the ids that messages were sent to, page by page', async () => {
    expect(await listed()).toEqual(['main', 'Grüße 🦞/%', 'user-42'])
    const first = await client.get(`${path()}?limit=2`)
    const next = /^<(.*)>; rel="next"$/.exec(first.headers.get('link') ?? '')?.[1] ?? ''
    expect((await client.get(next.slice(chowder.url.length))).body).toMatchObject([
      { id: 'user-42', is_active: false, total_tokens: expect.any(Number), updated_at: expect.stringContaining('T') },
    ])
  })

  it('show what was said, the newest page first', async () => {
    expect(await contents('user-42')).toEqual([
      'first',
      expect.stringContaining('turns=1'),
      'second',
      expect.stringContaining('turns=2'),
    ])
    const page = await client.get(`${path('user-42')}?limit=3`)
    expect(page.body.messages.map(({ role }: { role: string }) => role)).toEqual(['assistant', 'user', 'assistant'])
    const next = /^<(.*)>; rel="next"$/.exec(page.headers.get('link') ?? '')?.[1] ?? ''
    expect((await client.get(next.slice(chowder.url.length))).body.messages).toMatchObject([{ content: 'first' }])
  })

  it('forget what was said when they are reset', async () => {
    expect((await client.post(`${path('user-42')}/reset`)).status).toBe(204)
    expect(await contents('user-42')).toEqual([])
    expect(await tell('user-42', 'again')).toContain('turns=1 last="again"')
  })

  it('are gone when they are deleted, and main is emptied', async () => {
    expect((await client.delete(path('Grüße 🦞/%'))).status).toBe(204)
    expect((await client.delete(path('Grüße 🦞/%'))).status).toBe(404)
    expect((await client.get(path('Grüße 🦞/%'))).status).toBe(404)
    expect((await client.delete(path('main'))).status).toBe(204)
    expect(await listed()).not.toContain('Grüße 🦞/%')
    expect(await contents('main')).toEqual([])
  })

  it('that are deleted in the middle of a turn end the turn', async () => {
    const turn = client.post(sessionPath(id, 'busy'), { model: 'openclaw', input: 'wait [[fake:delay=30000]]' })
    await until('the turn to be under way', async () => (await client.get(path('busy'))).body.is_active === true)
    expect((await client.delete(path('busy'))).status).toBe(204)
    expect((await turn).body.status).not.toBe('completed')
  })

  it('that never were are a 404, also to reset', async () => {
    expect((await client.get(path('nobody'))).status).toBe(404)
    expect((await client.post(`${path('nobody')}/reset`)).status).toBe(404)
    expect(await listed()).not.toContain('nobody')
  })
})
