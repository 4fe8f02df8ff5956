import { afterAll, describe, expect, onTestFinished, test } from 'vitest'
import { FakeDriver } from '../../support/fake-driver.ts'
import { startFakeGateway } from '../../support/fake-gateway.ts'
import { present } from '../../support/present.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const providerKey = 'sk-ant-the-key-of-the-provider'

const as = (method: 'GET' | 'POST' | 'PATCH' | 'DELETE', path: string, body?: unknown) =>
  chowder.call(method, path, { key, ...(body !== undefined && { body }) })
const logs = async (query = '') => (await as('GET', `/v1/instances/${id}/logs${query}`)).body
const isRunning = () =>
  until('it to run', async () => (await as('GET', `/v1/instances/${id}/status`)).body.status === 'running')

const gateway = await startFakeGateway({})
const driver = new FakeDriver(() => gateway.endpoint)
const chowder = await openTestChowder({ sandboxes: driver })
const { key } = await chowder.signUp({ providerKey })
const created = await as('POST', '/v1/instances', { name: 'a' })
expect(created.status, JSON.stringify(created.body)).toBe(201)
const id = created.body.id
await chowder.startWorker()
await isRunning()
const url = await chowder.app.listen({ host: '127.0.0.1', port: 0 })
afterAll(async () => {
  await chowder.close()
  await gateway.close()
})

/** Follows the output, and keeps what was received. */
async function follow(query = '', as = key) {
  const abort = new AbortController()
  onTestFinished(() => abort.abort())
  const answer = await fetch(`${url}/v1/instances/${id}/logs?follow=true${query}`, {
    headers: { authorization: `Bearer ${as}`, connection: 'close' },
    signal: abort.signal,
  })
  const seen = { status: answer.status, type: answer.headers.get('content-type'), text: '', isOver: false, abort }
  const read = async () => {
    for await (const chunk of answer.body ?? []) seen.text += Buffer.from(chunk)
  }
  read()
    .catch(() => {})
    .finally(() => {
      seen.isOver = true
    })
  return seen
}

const write = (text: string) => {
  driver.output += text
}
const token = () => JSON.parse(present(driver.file(id, 'state/secrets.json'))).gatewayToken as string

describe('the output of an agent', () => {
  test('is its last lines, as JSON', async () => {
    driver.output = 'starting\none\ntwo\nthr'
    expect(await logs('?tail=2')).toEqual([
      { text: 'two', truncated: false },
      { text: 'thr', truncated: false },
    ])
    expect(await logs('?tail=0')).toEqual([])
    expect((await logs()).map(({ text }: { text: string }) => text)).toEqual(['starting', 'one', 'two', 'thr'])
    for (const tail of ['1001', '-1', 'x']) {
      expect((await as('GET', `/v1/instances/${id}/logs?tail=${tail}`)).status).toBe(422)
    }
  })

  test('A13: shows no secret that Chowder knows', async () => {
    const secrets = {
      provider: providerKey,
      other: 'AIza-key-of-another-provider',
      token: token(),
      override: 'secret-of-an-override',
      nested: 'secret-header-of-an-override',
      skill: 'a skill’s key & more',
      variable: 'value-of-a-variable',
    }
    await as('PATCH', '/v1/organization', { model_api_keys: { gemini: secrets.other } })
    const { vault, database } = chowder
    const overrides = {
      'messages.ackToken': secrets.override,
      'mcp.servers': { a: { headers: { x: secrets.nested } } },
    }
    await database.pool.query('UPDATE instances SET sealed_config = $2 WHERE id = $1', [
      id,
      vault.seal(JSON.stringify(overrides), `instances/${id}/sealed_config`),
    ])
    const settings = { apiKey: secrets.skill, env: { NAME: secrets.variable } }
    await database.pool.query('INSERT INTO skills (instance_id, name, sealed_settings) VALUES ($1, $2, $3)', [
      id,
      'weather',
      vault.seal(JSON.stringify(settings), `skills/${id}.weather/sealed_settings`),
    ])
    // A channel that the gateway has refused: its credentials were given to it nevertheless.
    const channel = { botToken: '123456:the-token-of-a-bot', dmPolicy: 'pairing' }
    await database.pool.query(
      `INSERT INTO channels (instance_id, channel, enabled, sealed_config, error_message) VALUES ($1, 'telegram', true, $2, 'refused')`,
      [id, vault.seal(JSON.stringify(channel), `channels/${id}.telegram/sealed_config`)],
    )
    const all = [...Object.values(secrets), channel.botToken]
    driver.output = all
      .flatMap((secret) => [
        `plain ${secret}`,
        `url https://x.test/?k=${encodeURIComponent(secret)}&dmPolicy=pairing`,
        `basic ${Buffer.from(`user:${secret}`).toString('base64')}`,
      ])
      .map((line) => `${line}\n`)
      .join('')
    const shown: string[] = (await logs()).map(({ text }: { text: string }) => text)
    expect(shown).toHaveLength(3 * all.length)
    for (const [index, line] of shown.entries()) {
      const secret = present(all[Math.floor(index / 3)])
      for (const form of [secret, encodeURIComponent(secret), Buffer.from(secret).toString('base64').slice(4, -4)])
        expect(line).not.toContain(form)
      if (line.startsWith('plain')) expect(line).toBe('plain ***')
      if (line.startsWith('url')) expect(line).toBe('url https://x.test/?k=***&dmPolicy=pairing')
    }
    driver.output = 'starting\n'
    for (const table of ['skills', 'channels']) await database.pool.query(`DELETE FROM ${table}`)
    await database.pool.query('UPDATE instances SET sealed_config = NULL')
  })

  test('needs the permission `configure`', async () => {
    const grant = { name: 'k', instance_ids: [id], permissions: ['read', 'interact', 'files', 'channels'] }
    const { raw_key } = (await as('POST', '/v1/keys', grant)).body
    expect((await chowder.call('GET', `/v1/instances/${id}/logs`, { key: raw_key })).status).toBe(403)
  })
})

describe('the output of an agent, followed', () => {
  test('goes on with new lines as they come, also after a restart, with secrets hidden', async () => {
    driver.output = 'old\nstarting\n'
    const seen = await follow('&tail=1')
    expect([seen.status, seen.type]).toEqual([200, 'text/event-stream'])
    await until('the first line', () => seen.text.includes('starting'))
    write(`half of ${providerKey.slice(0, 9)}`)
    await until('nothing of it', async () => (await logs('?tail=1'))[0].text.startsWith('half'))
    write(`${providerKey.slice(9)}\n`)
    await until('the whole line', () => seen.text.includes('half of ***'))
    driver.die(id)
    await until('the next run', () => (driver.starts.get(id) ?? 0) > 1)
    write('starting again\n')
    await until('its output', () => seen.text.includes('starting again'))
    expect(seen.text).not.toContain('old')
    const events = seen.text.split('\n\n').filter((event) => event.startsWith('event:'))
    expect(events).toEqual(
      ['starting', 'half of ***', 'starting again'].map(
        (text) => `event: line\ndata: ${JSON.stringify({ text, truncated: false })}`,
      ),
    )
    expect(seen.isOver).toBe(false)
    await isRunning()
  })

  test('is cut when its key is revoked', async () => {
    const grant = { name: 'k', instance_ids: [id], permissions: ['configure'] }
    const scoped = (await as('POST', '/v1/keys', grant)).body
    const seen = await follow('', scoped.raw_key)
    await until('the first line', () => seen.text.includes('starting'))
    await as('DELETE', `/v1/keys/${scoped.id}`)
    await until('the cut', () => seen.isOver, 5000)
    expect(seen.text).not.toContain('event: end')
  })

  test('has a place for five at once, and gives it back', async () => {
    const five = await Promise.all(Array.from({ length: 5 }, () => follow()))
    expect(five.map(({ status }) => status)).toEqual([200, 200, 200, 200, 200])
    const sixth = await as('GET', `/v1/instances/${id}/logs?follow=true`)
    expect([sixth.status, sixth.body.detail]).toEqual([429, expect.stringContaining('Too many requests follow')])
    expect(sixth.headers['retry-after']).toBe('10')
    five[0]?.abort.abort()
    await until('a place', async () => {
      const next = await follow()
      next.abort.abort()
      return next.status === 200
    })
  })

  test('waits for a client that does not read, and holds nothing in memory meanwhile', async () => {
    const abort = new AbortController()
    const answer = await fetch(`${url}/v1/instances/${id}/logs?follow=true&tail=0`, {
      headers: { authorization: `Bearer ${key}`, connection: 'close' },
      signal: abort.signal,
    })
    const reader = present(answer.body ?? undefined).getReader()
    await reader.read()
    let reads = 0
    const { readLog } = driver
    driver.readLog = (...args) => {
      reads += 1
      return readLog.apply(driver, args)
    }
    const [lines, characters] = [1000, 16_000]
    write(`${'x'.repeat(characters)}\n`.repeat(lines))
    const before = await until('no more reading', async () => {
      const at = reads
      await new Promise((resolve) => setTimeout(resolve, 1500))
      return reads === at && at
    })
    expect(before).toBeLessThan(5) // of 200 lines each; the sockets take some
    let received = 0
    while (received < lines * characters) received += (await reader.read()).value?.length ?? 0
    expect(reads).toBeGreaterThanOrEqual(5)
    driver.readLog = readLog
    driver.output = 'starting\n'
    abort.abort()
  })

  test('ends when the instance is stopped, after its last line, and goes on after a start', async () => {
    const seen = await follow()
    await until('the first line', () => seen.text.includes('starting'))
    const { stop } = driver
    driver.stop = async (...args) => {
      expect(seen.isOver).toBe(false)
      write('bye\n')
      await stop.apply(driver, args)
    }
    await as('POST', `/v1/instances/${id}/stop`)
    driver.stop = stop
    await until('the end', () => seen.isOver)
    expect(seen.text).toMatch(
      /"bye","truncated":false\}\n\nevent: end\ndata: \{"reason":"The instance was stopped\."\}\n\n$/,
    )
    const again = await follow('&tail=1')
    await until('its end', () => again.isOver)
    expect(again.text).toContain('"bye"')
    await as('POST', `/v1/instances/${id}/start`)
    driver.output = 'starting\n'
    await isRunning()
  })

  test('ends when the instance is deleted', async () => {
    const seen = await follow()
    await until('the first line', () => seen.text.includes('starting'))
    await as('DELETE', `/v1/instances/${id}`)
    await until('the end', () => seen.isOver)
    expect(seen.text).toMatch(/event: end\ndata: \{"reason":"The instance was deleted\."\}\n\n$/)
    expect(await logs()).toEqual([])
    const again = await as('GET', `/v1/instances/${id}/logs?follow=true`)
    expect([again.status, again.body]).toEqual([200, []])
  })
})

describe('what an agent uses', () => {
  test('is measured while it runs, and null otherwise', async () => {
    const { id: other } = (await as('POST', '/v1/instances', { name: 'b' })).body
    const metrics = async () => (await as('GET', `/v1/instances/${other}/metrics`)).body
    await until('it to run', async () => (await metrics()).processes === 4)
    await until('rest', async () => (await as('GET', `/v1/instances/${other}/status`)).body.status === 'running')
    expect(await metrics()).toEqual({
      since: '2026-02-14T16:00:00.000000+00:00',
      memory_bytes: 900e6,
      memory_limit_bytes: null,
      cpu_seconds: 1.5,
      processes: 4,
      disk_bytes: 43e6,
      restarts: 0,
    })
    driver.die(other)
    await until('a restart', async () => (await metrics()).restarts === 1)
    await until('it to run', async () => (await as('GET', `/v1/instances/${other}/status`)).body.status === 'running')
    await as('POST', `/v1/instances/${other}/stop`)
    await until('the stop', async () => (await metrics()).since === null)
    expect(await metrics()).toMatchObject({ memory_bytes: null, cpu_seconds: null, disk_bytes: 43e6, restarts: 1 })
    await as('DELETE', `/v1/instances/${other}`)
    await until('the end', async () => (await metrics()).disk_bytes === null)
  })
})
