import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createFrameReader } from '#api/responses/web-socket-frames.ts'
import { FakeDriver } from '../support/fake-driver.ts'
import { watchTurns } from '../support/longest-turn.ts'
import { responseObject } from '../support/stub-responses-gateway.ts'
import { openTestChowder, type TestChowder } from '../support/test-chowder.ts'
import { until } from '../support/until.ts'

const mebibyte = 1024 * 1024
const bytes = 20 * mebibyte - 1024
/** Twice what one body may hold the event loop, because the processor time of a test includes its collections. */
const mostMs = 100
/** One of them may meet a slow moment of the machine: what a body costs is the least. */
const attempts = 3

/** A gateway that reads no body, and answers all the same. */
const server = createServer((request, response) => {
  request.resume().once('end', () => {
    response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(responseObject()))
  })
})
let chowder: TestChowder
let key: string
let instanceId: string

beforeAll(async () => {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  chowder = await openTestChowder({
    sandboxes: new FakeDriver(() => ({ kind: 'tcp', host: '127.0.0.1', port })),
  })
  key = (await chowder.signUp()).key
  instanceId = (await chowder.call('POST', '/v1/instances', { key, body: { name: 'x' } })).body.id
  const endpoint = { kind: 'tcp', host: '127.0.0.1', port }
  await chowder.database.pool.query(
    'UPDATE instances SET ready_at = now(), observed_generation = generation, endpoint = $1 WHERE id = $2',
    [endpoint, instanceId],
  )
  await until('it to run', async () => {
    return (await chowder.call('GET', `/v1/instances/${instanceId}/status`, { key })).body.status === 'running'
  })
})
afterAll(async () => {
  await chowder.close()
  server.close()
})

async function send(text: string) {
  const payload = Buffer.from(text)
  const url = `/v1/instances/${instanceId}/responses`
  const headers = { 'content-type': 'application/json', authorization: `Bearer ${key}` }
  const longestTurn = watchTurns()
  const { statusCode, body } = await chowder.app.inject({ method: 'POST', url, headers, payload })
  const ms = longestTurn()
  const { error } = JSON.parse(body) as { error: { code: string } | null }
  return { status: statusCode, code: error?.code, ms }
}
const repeated = (text: string, size = bytes) => text.repeat(Math.floor(size / text.length))
const hello = { model: 'openclaw', input: 'Hello' }
const asMessage = (input: unknown) => JSON.stringify({ model: 'openclaw', input })

describe('S7: a body of 20 MiB holds the event loop for a moment', () => {
  const keys = (padding: string) => `{${Array.from({ length: 49_900 }, (_, at) => `"k${at}${padding}":1`)}}`
  const part = { type: 'input_text', text: 'x'.repeat(1000) }
  test.each<[string, number, string | undefined, () => string]>([
    ['numbers', 400, 'too_many_values', () => `{"model":"openclaw","input":[${repeated('1,')}1]}`],
    ['objects', 400, 'too_many_values', () => `{"model":"openclaw","input":[${repeated('{},')}{}]}`],
    ['as many values as are allowed', 422, 'validation_failed', () => asMessage(Array(49_900).fill({}))],
    ['long keys', 400, 'too_many_values', () => keys('x'.repeat(390))],
    ['many keys', 422, 'validation_failed', () => keys('x'.repeat(50))],
    ['an unfinished text', 400, 'invalid_json', () => `{"model":"openclaw","input":"${repeated('x')}`],
    ['a text of a wrong field', 422, 'validation_failed', () => JSON.stringify({ model: repeated('x'), input: 'x' })],
    ['instructions', 413, 'instructions_too_large', () => JSON.stringify({ ...hello, instructions: repeated('x') })],
    ['a text', 200, undefined, () => asMessage(repeated('x'))],
    ['a text of two bytes a character', 200, undefined, () => asMessage(`${repeated('x')}🥣`)],
    ['parts', 200, undefined, () => asMessage(Array(64).fill({ role: 'user', content: Array(250).fill(part) }))],
  ])('%s', async (_what, status, code, text) => {
    let least = Number.POSITIVE_INFINITY
    for (let attempt = 1; attempt <= attempts && least >= mostMs; attempt += 1) {
      const { ms, ...answer } = await send(text())
      expect(answer).toEqual({ status, code })
      least = Math.min(least, ms)
    }
    expect(least).toBeLessThan(mostMs)
  })

  test('a frame of a WebSocket is refused as a body is', async () => {
    const readFrame = createFrameReader()
    const frame = () => Buffer.from(`{"type":"response.create","model":"openclaw","input":[${repeated('1,')}1]}`)
    const longestTurn = watchTurns()
    await expect(readFrame(frame())).rejects.toMatchObject({ code: 'too_many_values' })
    expect(longestTurn()).toBeLessThan(mostMs)
  })
})
