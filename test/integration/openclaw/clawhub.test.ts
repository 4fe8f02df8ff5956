import type { ServerResponse } from 'node:http'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest'
import { createClawHub } from '#openclaw/skills/clawhub.ts'
import { startFakeClawHub } from '../../support/fake-clawhub.ts'

const reference = { owner: 'acme', slug: 'web-search' }
const publish = (version = '1.0.0') => hub.publish(reference, { version, files: { 'SKILL.md': 'x' }, verdict: 'clean' })
const answerWith = (respond: (response: ServerResponse) => unknown, only: RegExp = /./) => {
  hub.intercept = ({ url = '' }, response) => {
    if (!only.test(url)) return false
    respond(response)
    return true
  }
}
const json = (body: unknown) => (response: ServerResponse) =>
  response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(body))

const hub = await startFakeClawHub()
const client = createClawHub(hub.url)
afterEach(() => {
  hub.intercept = null
  hub.skills.length = 0
})
afterAll(() => hub.close())

test('a release has a version, a verdict and the published files', async () => {
  publish()
  expect(await client.release(reference, undefined)).toEqual({
    version: '1.0.0',
    verdict: { kind: 'clean' },
    files: new Map([['SKILL.md', '2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881']]),
  })
})

test.each<[string, (response: ServerResponse) => unknown]>([
  ['does not know its files', (response) => response.writeHead(404).end()],
  ['lists no files', json({ version: { version: '1.0.0' } })],
])('S28: a clean release of a registry that %s is unverified', async (_what, respond) => {
  publish()
  answerWith(respond, /versions/)
  expect(await client.release(reference, undefined)).toEqual({
    version: '1.0.0',
    verdict: { kind: 'unverified', reason: 'the registry does not list its files' },
    files: null,
  })
})

test('a release that a moderator withholds is refused with the registry’s message', async () => {
  publish()
  for (const [status, only] of [
    [403, /versions/],
    [410, /web-search\?/],
    [423, /versions/],
  ] as const) {
    answerWith((response) => response.writeHead(status).end('Under\nreview.'), only)
    await expect(client.release(reference, undefined)).rejects.toMatchObject({
      kind: 'invalid',
      message: expect.stringContaining('Under review.'),
    })
  }
})

test('skills of other sources, and skills with malformed names, are left out', async () => {
  const row = { slug: 'x', ownerHandle: 'acme', source: 'clawhub' }
  const others = [
    { ...row, source: 'skills-sh' },
    { ...row, slug: '../x' },
    { ...row, ownerHandle: '@a/b' },
    { ...row, ownerHandle: null },
    null,
  ]
  answerWith(json({ results: [...others, row, { ...row, version: '1; rm', displayName: 'X\u001b[31m' }] }))
  expect(await client.search('x', 50)).toEqual([
    { owner: 'acme', slug: 'x', name: 'x', description: '', version: null },
    { owner: 'acme', slug: 'x', name: 'X [31m', description: '', version: null },
  ])
})

test('a 429 of the registry is unavailable, with its Retry-After', async () => {
  answerWith((response) => response.writeHead(429, { 'retry-after': '7' }).end('slow down'))
  await expect(client.search('x', 1)).rejects.toMatchObject({ kind: 'unavailable', retryAfterSeconds: 7 })
})

describe('A21: a hostile registry is a 502 within its time limit', () => {
  let internalRequests = 0
  const internal = createServer((_request, response) => {
    internalRequests += 1
    response.end('{"results":[]}')
  })
  beforeAll(() => new Promise<void>((resolve) => void internal.listen(0, '127.0.0.1', resolve)))
  afterAll(() => new Promise((resolve) => internal.close(resolve)))

  const drip = (response: ServerResponse) => {
    response.writeHead(200)
    const timer = setInterval(() => response.write(' '), 20)
    response.once('close', () => clearInterval(timer))
  }
  const flood = (response: ServerResponse) => {
    response.writeHead(200, { 'content-length': String(2 ** 31) })
    const chunk = Buffer.alloc(256 * 1024, ' ')
    const pour = () => {
      while (!response.destroyed && response.write(chunk)) {}
    }
    response.on('drain', pour)
    pour()
  }
  test.each<[string, (response: ServerResponse) => unknown]>([
    ['never answers', () => {}],
    ['answers byte by byte', drip],
    ['answers with 2 GB', flood],
    ['closes the connection', (response) => response.destroy()],
    ['fails', (response) => response.writeHead(500).end('<script>')],
    [
      'redirects to an internal address',
      (response) =>
        response.writeHead(302, { location: `http://127.0.0.1:${(internal.address() as AddressInfo).port}/` }).end(),
    ],
    ['sends a huge header', (response) => response.writeHead(200, { 'x-large': 'x'.repeat(100_000) }).end('{}')],
    ['answers HTML', (response) => response.writeHead(200).end('<html>')],
    ['answers an array', json([])],
    [
      'answers wrong types',
      json({ results: 'none', items: [{ requestedSlug: 1 }], skill: 7, latestVersion: { version: '1.0.0' } }),
    ],
  ])('that %s', async (_behaviour, respond) => {
    publish()
    answerWith(respond)
    const client = createClawHub(hub.url, 1000)
    const startedAt = performance.now()
    for (const call of [() => client.search('x', 1), () => client.release(reference, '1.0.0')]) {
      await expect(call()).rejects.toMatchObject({ name: 'AppError', kind: 'gateway_unreachable' })
    }
    expect(performance.now() - startedAt).toBeLessThan(15_000)
    expect(internalRequests).toBe(0)
  })

  test('that answers with the verdict of another release', async () => {
    publish()
    const others = [{ requestedVersion: '0.9.0' }, { version: '0.9.0' }, { requestedSlug: 'other' }]
    for (const changed of [...others, { publisherHandle: 'bob' }]) {
      const item = { ok: true, decision: 'pass', reasons: [], requestedSlug: 'web-search', requestedVersion: '1.0.0' }
      answerWith(json({ items: [{ ...item, security: { status: 'clean' }, ...changed }] }), /verdicts/)
      await expect(client.release(reference, undefined)).rejects.toMatchObject({ kind: 'gateway_unreachable' })
    }
  })

  test.each([
    [[{ path: '../../x', sha256: 'a'.repeat(64) }]],
    [[{ path: '/etc/passwd', sha256: 'a'.repeat(64) }]],
    [[{ path: 'a\\b', sha256: 'a'.repeat(64) }]],
    [[{ path: 'a', sha256: 'short' }]],
    [['a']],
    [Array.from({ length: 1001 }, (_, index) => ({ path: `f${index}`, sha256: 'a'.repeat(64) }))],
    ['files'],
  ])('that lists malformed files: %j', async (files) => {
    publish()
    answerWith(json({ version: { files } }), /versions/)
    await expect(client.release(reference, undefined)).rejects.toMatchObject({ kind: 'gateway_unreachable' })
  })
})
