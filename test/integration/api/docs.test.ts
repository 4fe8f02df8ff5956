import { hash } from 'node:crypto'
import { brotliDecompressSync } from 'node:zlib'
import { afterAll, expect, test } from 'vitest'
import { errorCodes } from '#errors/codes.ts'
import type { ApiDocument } from '#http/openapi.ts'
import { errorBody } from '../../support/error-body.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { operationsOf } from '../../support/operations.ts'
import { openTestChowder } from '../../support/test-chowder.ts'

const chowder = await openTestChowder({ sandboxes: new FakeDriver() })
afterAll(() => chowder.close())

const get = (url: string) => chowder.app.inject({ method: 'GET', url })

test('anybody can read the OpenAPI document, and cache it', async () => {
  const { statusCode, headers, json } = await get('/openapi.json')
  expect([statusCode, headers['cache-control']]).toEqual([200, 'public, max-age=300'])
  expect(json()).toEqual(JSON.parse(JSON.stringify(chowder.app.swagger())))
})

test('the page loads nothing from another host, and its policy forbids it', async () => {
  const { statusCode, headers, body } = await get('/docs/')
  expect([statusCode, headers['content-type']]).toEqual([200, 'text/html; charset=utf-8'])
  expect(body).toContain('<title>Chowder API</title>')
  expect(body.match(/https?:/g)).toBe(null)
  const asked = [...body.matchAll(/(?:src|href)="([^"]+)"|"url": "([^"]+)"/g)].map(([, link, url]) => link ?? url ?? '')
  expect(asked).toEqual(['js/scalar.js', '../openapi.json'])
  for (const url of asked) {
    expect((await get(new URL(url, 'http://chowder.test/docs/').pathname)).statusCode).toBe(200)
  }
  const [inline = ''] = [...body.matchAll(/<script type="text\/javascript">(.*?)<\/script>/gs)].map(([, text]) => text)
  const policy = Object.fromEntries(
    String(headers['content-security-policy'])
      .split('; ')
      .map((directive) => [directive.split(' ')[0], directive.split(' ').slice(1)]),
  )
  expect(policy).toMatchObject({
    'default-src': ["'none'"],
    'script-src': ["'self'", `'sha256-${hash('sha256', inline, 'base64')}'`],
    'connect-src': ["'self'"],
    'font-src': ["'self'", 'data:'],
  })
  expect(Object.values(policy).flat().join(' ')).not.toMatch(/https?:|\*|unsafe-eval/)
})

test('the script of the page is compressed, and is not sent again to a browser that has it', async () => {
  const ask = (headers: Record<string, string>) =>
    chowder.app.inject({ method: 'GET', url: '/docs/js/scalar.js', headers })
  const plain = await ask({})
  const compressed = await ask({ 'accept-encoding': 'gzip, br' })
  expect(compressed.headers).toMatchObject({
    'content-encoding': 'br',
    vary: 'accept-encoding',
    etag: plain.headers.etag,
  })
  expect(compressed.rawPayload.length).toBeLessThan(plain.rawPayload.length / 3)
  expect(brotliDecompressSync(compressed.rawPayload).equals(plain.rawPayload)).toBe(true)
  const again = await ask({ 'accept-encoding': 'br', 'if-none-match': String(plain.headers.etag) })
  expect([again.statusCode, again.rawPayload.length]).toEqual([304, 0])
})

test('/docs/errors has an anchor for each error code, and loads nothing', async () => {
  const { statusCode, headers, body } = await get('/docs/errors')
  expect([statusCode, headers['content-type']]).toEqual([200, 'text/html; charset=utf-8'])
  expect(headers['content-security-policy']).toContain("default-src 'none'")
  const withoutExample = body.replace(/<pre>.*?<\/pre>/s, '')
  expect(withoutExample.match(/https?:|src=|<script|@import|url\(/g)).toBe(null)
  for (const [code, { meaning }] of Object.entries(errorCodes)) {
    expect(body.split(`id="${code}"`)).toHaveLength(2)
    expect(body).toContain(meaning.split('`')[0])
  }
  const unknown = await get('/v1/nothing')
  expect(unknown.json()).toEqual(errorBody('unknown_route', 'No route GET /v1/nothing. GET /docs lists all.'))
  const { pathname, hash: anchor } = new URL(unknown.json().error.doc_url)
  expect((await get(pathname)).body).toContain(`id="${anchor.slice(1)}"`)
})

test('/docs/guides has every guide of docs/, whose links lead to pages and anchors of this server', async () => {
  const list = await get('/docs/guides')
  const names = [...list.body.matchAll(/href="guides\/([\w-]+)"/g)].map(([, name = '']) => name)
  expect(names).toContain('quickstart')
  const pages = new Map(
    await Promise.all(names.map(async (name) => [name, await get(`/docs/guides/${name}`)] as const)),
  )
  for (const { statusCode, headers, body } of pages.values()) {
    expect([statusCode, headers['content-type']]).toEqual([200, 'text/html; charset=utf-8'])
    expect(headers['content-security-policy']).toContain("default-src 'none'")
    expect(body).not.toMatch(/src="(?!data:)|<script|href="(?!https:)[^"]*\.md/)
  }
  for (const [own, { body }] of pages) {
    for (const [, name = '', anchor] of body.matchAll(/href="(?!\.|https?:)([\w-]*)(?:#([^"]+))?"/g)) {
      const page = pages.get(name || own)
      expect(page?.statusCode, `${own}: ${name}`).toBe(200)
      if (anchor !== undefined) expect(page?.body).toContain(`id="${anchor}"`)
    }
  }
  expect((await get('/docs/guides/..%2F..%2Fpackage')).statusCode).toBe(404)
})

test('/docs redirects to the page', async () => {
  const { statusCode, headers } = await get('/docs')
  expect([statusCode, headers.location]).toEqual([301, '/docs/'])
})

test('llms.txt has the quick start, every call with the key that it needs, and links to this server', async () => {
  const { headers, body } = await get('/llms.txt')
  expect(headers['content-type']).toBe('text/plain; charset=utf-8')
  expect(body).toContain('curl -s http://chowder.test/v1/organization/signup')
  for (const link of body.matchAll(/\]\(http:\/\/chowder\.test(\/[^)]+)\)/g)) {
    expect((await get(link[1] ?? '')).statusCode).toBeLessThanOrEqual(399)
  }
  for (const { name, operation } of operationsOf(chowder.app.swagger() as unknown as ApiDocument)) {
    expect(body).toContain(`- ${name}: ${operation.summary} (`)
  }
})
