import { hash } from 'node:crypto'
import { once } from 'node:events'
import { request as httpRequest, type IncomingMessage } from 'node:http'
import { afterEach, describe, expect, test } from 'vitest'
import { newApiKey } from '#http/api-key.ts'
import { newId } from '#platform/ids.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { present } from '../../support/present.ts'
import { startStream, startStubGateway, streamHead } from '../../support/stub-responses-gateway.ts'
import { openTestChowder, type TestChowder } from '../../support/test-chowder.ts'

const undo: (() => Promise<unknown> | unknown)[] = []
afterEach(async () => {
  for (const act of undo.splice(0).reverse()) await act()
})

/** Further keys of an organization, made at once. */
async function addKeys({ database }: TestChowder, organizationId: string, number: number): Promise<string[]> {
  const keys = Array.from({ length: number }, () => newApiKey('organization'))
  await database.pool.query(
    `INSERT INTO api_keys (id, organization_id, key_hash, key_prefix)
     SELECT unnest($1::uuid[]), $2, unnest($3::bytea[]), 'chd_org_'`,
    [keys.map(newId), organizationId, keys.map((key) => hash('sha256', key, 'buffer'))],
  )
  return keys
}

const countOf = (statuses: number[], status: number) => statuses.filter((one) => one === status).length

describe('A14: 10,000 keys', { timeout: 120_000, tags: ['long'] }, () => {
  test('of one organization have its allowance together, and another organization keeps its own', async () => {
    const [requestsPerMinute, organizationRequestsPerMinute] = [50, 400]
    const chowder = await openTestChowder({
      sandboxes: new FakeDriver(),
      limits: { requestsPerMinute, organizationRequestsPerMinute },
    })
    undo.push(() => chowder.close())
    const [hostile, other] = [await chowder.signUp(), await chowder.signUp()]
    const keys = await addKeys(chowder, hostile.id, 10_100)
    const read = async (key: string) => (await chowder.call('GET', '/v1/organization', { key })).status
    const statuses: number[] = []
    const others: number[] = []
    for (let at = 0; at < keys.length; at += 100) {
      statuses.push(...(await Promise.all(keys.slice(at, at + 100).map(read))))
      if (others.length < 40) others.push(await read(other.key))
    }
    expect(countOf(statuses, 200)).toBe(organizationRequestsPerMinute - 1) // its sign-up was followed by one request
    expect(countOf(statuses, 429)).toBe(keys.length - organizationRequestsPerMinute + 1)
    expect(others).toEqual(Array(40).fill(200))
  })

  test('that nobody has are refused, most of them as too many, and a good key from the same address is served', async () => {
    const chowder = await openTestChowder({ sandboxes: new FakeDriver(), limits: { failedAuthPerMinute: 60 } })
    undo.push(() => chowder.close())
    const { key } = await chowder.signUp()
    const read = async (one: string) => (await chowder.call('GET', '/v1/organization', { key: one })).status
    const guesses = Array.from({ length: 10_000 }, () => newApiKey('organization'))
    const statuses: number[] = []
    for (let at = 0; at < guesses.length; at += 100) {
      statuses.push(...(await Promise.all(guesses.slice(at, at + 100).map(read))))
    }
    expect([countOf(statuses, 401), countOf(statuses, 429)]).toEqual([60, 9940])
    expect(await read(key)).toBe(200)
  })
})

test('A14: 1,000 streams of one key are the most, and another organization streams on', {
  timeout: 120_000,
  tags: ['long'],
}, async () => {
  const gateway = await startStubGateway((response) => void startStream(response).write(streamHead))
  const chowder = await openTestChowder({ sandboxes: new FakeDriver(), inFlightLimits: { turns: 1000 } })
  undo.push(
    () => gateway.close(),
    () => chowder.close(),
  )
  const url = new URL(await chowder.app.listen({ port: 0, host: '127.0.0.1' }))
  const makeTenant = async () => {
    const { key } = await chowder.signUp()
    const id = await chowder.createReady(key, gateway.endpoint)
    return { key, id }
  }
  const [hostile, other] = [await makeTenant(), await makeTenant()]
  const left = new AbortController()
  const begin = async ({ key, id }: { key: string; id: string }) => {
    const sent = httpRequest({
      host: url.hostname,
      port: url.port,
      method: 'POST',
      path: `/v1/instances/${id}/session/${newId()}/responses`,
      headers: { authorization: `Bearer ${key}`, 'content-type': 'application/json' },
      agent: false,
      signal: left.signal,
    }).on('error', () => {})
    sent.end('{"model":"openclaw","input":"x","stream":true}')
    const [answer] = (await once(sent, 'response')) as [IncomingMessage]
    answer.on('error', () => {})
    return answer
  }
  try {
    const statuses: number[] = []
    for (let at = 0; at < 1050; at += 50) {
      const answers = await Promise.all(Array.from({ length: 50 }, () => begin(hostile)))
      statuses.push(...answers.map(({ statusCode }) => present(statusCode)))
      expect((await begin(other)).statusCode).toBe(200)
    }
    expect([countOf(statuses, 200), countOf(statuses, 429)]).toEqual([1000, 50])
    expect((await begin(hostile)).headers['retry-after']).toBe('1')
  } finally {
    left.abort()
  }
})
