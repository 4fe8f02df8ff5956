import { once } from 'node:events'
import { request as httpRequest } from 'node:http'
import { afterAll, describe, expect, test } from 'vitest'
import { WebSocket } from 'ws'
import { FakeDriver } from '../../support/fake-driver.ts'
import { present } from '../../support/present.ts'
import { startStream, startStubGateway, streamHead } from '../../support/stub-responses-gateway.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const limits = { turns: 2, sockets: 2, transfers: 1, lists: 3, bodyBytes: 100_000, processBodyBytes: 150_000 }

// Its turns begin and do not end.
const gateway = await startStubGateway((response) => void startStream(response).write(streamHead))
const chowder = await openTestChowder({ sandboxes: new FakeDriver(), inFlightLimits: limits })
const url = await chowder.app.listen({ port: 0, host: '127.0.0.1' })
const tenants = await Promise.all(
  Array.from({ length: 3 }, async () => {
    const { key } = await chowder.signUp()
    const id = await chowder.createReady(key, gateway.endpoint)
    return { key, id }
  }),
)
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})

const headersOf = (key: string) => ({ authorization: `Bearer ${key}`, 'content-type': 'application/json' })

/** Sends a turn in a session of its own, and gives the status with a way to leave. */
async function openTurn({ key, id }: { key: string; id: string }) {
  const left = new AbortController()
  const answer = await fetch(`${url}/v1/instances/${id}/session/${crypto.randomUUID()}/responses`, {
    method: 'POST',
    headers: headersOf(key),
    body: JSON.stringify({ model: 'openclaw', input: 'x', stream: true }),
    signal: left.signal,
  })
  return { answer, leave: () => left.abort() }
}

async function refusalOf(answer: Response) {
  expect(answer.status, 'a refusal').toBeGreaterThanOrEqual(400) // a stream that began would have no end
  const { error, detail } = (await answer.json()) as { error: { code: string }; detail: string }
  return { status: answer.status, code: error.code, detail, retryAfter: answer.headers.get('retry-after') }
}

describe('S8: what an organization has in flight', () => {
  test('turns: one more is a 429 with Retry-After, another organization goes on, and each end makes room', async () => {
    const [tenant, other] = [present(tenants[0]), present(tenants[1])]
    const open = [await openTurn(tenant), await openTurn(tenant)]
    expect(open.map(({ answer }) => answer.status)).toEqual([200, 200])
    const refused = await refusalOf((await openTurn(tenant)).answer)
    expect(refused).toMatchObject({ status: 429, code: 'too_much_in_flight', retryAfter: '1' })
    expect(refused.detail).toContain('2 turns')
    const elsewhere = await openTurn(other)
    expect(elsewhere.answer.status).toBe(200)
    for (const { leave } of [...open, elsewhere]) leave()
    const again = await until('room for a turn', async () => {
      const turn = await openTurn(tenant)
      return turn.answer.status === 200 && turn
    })
    again.leave()
  })

  test('turns on WebSockets count too, and sockets are bounded by themselves', async () => {
    const tenant = present(tenants[2])
    const connect = () => {
      const path = `/v1/instances/${tenant.id}/session/${crypto.randomUUID()}/responses`
      return new WebSocket(url + path, { headers: { authorization: `Bearer ${tenant.key}` } })
    }
    const sockets = [connect(), connect()]
    await Promise.all(sockets.map((socket) => once(socket, 'open')))
    const refused = connect().on('error', () => {})
    const [, response] = await once(refused, 'unexpected-response')
    expect(response.statusCode).toBe(429)

    const frame = JSON.stringify({ type: 'response.create', model: 'openclaw', input: 'x' })
    const turn = await openTurn(tenant)
    const first = once(present(sockets[0]), 'message')
    sockets[0]?.send(frame)
    await first
    const answered = once(present(sockets[1]), 'message')
    sockets[1]?.send(frame)
    const [message] = await answered
    expect(JSON.parse(String(message))).toMatchObject({
      type: 'error',
      status: 429,
      error: { code: 'too_much_in_flight' },
    })
    turn.leave()
    for (const socket of sockets) socket.close()
    await until('room for a socket', async () => {
      const socket = connect().on('error', () => {})
      const isOpen = await Promise.race([
        once(socket, 'open').then(() => true),
        once(socket, 'unexpected-response').then(() => false),
      ])
      socket.terminate()
      return isOpen
    })
  })

  test('lists: one more is a 429, and another organization goes on', async () => {
    const [tenant, other] = [present(tenants[0]), present(tenants[1])]
    const list = ({ key }: { key: string }, path: string) => fetch(url + path, { headers: headersOf(key) })
    const lock = await chowder.database.pool.connect()
    await lock.query('BEGIN; LOCK TABLE events')
    const path = '/v1/organization/events?limit=1000'
    const answers = Array.from({ length: 4 }, () => list(tenant, path))
    try {
      expect(await refusalOf(await Promise.race(answers))).toMatchObject({
        status: 429,
        code: 'too_much_in_flight',
        retryAfter: '1',
      })
      expect((await list(other, '/v1/instances')).status).toBe(200)
    } finally {
      await lock.query('COMMIT')
      lock.release()
    }
    expect((await Promise.all(answers)).map(({ status }) => status).sort()).toEqual([200, 200, 200, 429])
    await until('room for a list', async () => (await list(tenant, '/v1/keys')).status === 200)
  })

  test('bytes of bodies, also announced ones that have not come, of one organization and of all', async () => {
    const sending = ({ key, id }: { key: string; id: string }, bytes: number) => {
      const request = httpRequest(`${url}/v1/instances/${id}`, {
        method: 'PATCH',
        headers: { ...headersOf(key), 'content-length': bytes, expect: '100-continue' },
      })
      request.on('error', () => {}).flushHeaders()
      return request
    }
    const [one, other, third] = [present(tenants[0]), present(tenants[1]), present(tenants[2])]
    const patch = async ({ key, id }: { key: string; id: string }, bytes: number) =>
      refusalOf(
        await fetch(`${url}/v1/instances/${id}`, {
          method: 'PATCH',
          headers: headersOf(key),
          body: JSON.stringify({ name: 'x'.repeat(bytes) }),
        }),
      )
    const held = sending(one, 90_000)
    await once(held, 'continue')
    expect(await patch(one, 20_000)).toMatchObject({ status: 429, code: 'too_much_in_flight', retryAfter: '1' })
    expect(await patch(other, 20_000)).toMatchObject({ status: 422 })
    const more = sending(other, 55_000)
    await once(more, 'continue')
    const refused = await until('both to count', async () => {
      const answer = await patch(third, 20_000)
      return answer.status === 503 && answer
    })
    expect(refused).toMatchObject({ code: 'overloaded', retryAfter: '1' })
    for (const request of [held, more]) request.destroy()
    await until('room for a body', async () => (await patch(one, 20_000)).status === 422)
  })
})
