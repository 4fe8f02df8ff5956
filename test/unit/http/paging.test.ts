import type { FastifyReply } from 'fastify'
import { expect, test } from 'vitest'
import { linkNext, positionOf } from '#http/paging.ts'

function headersFor(target: string, publicUrl: string): Map<string, string> {
  const headers = new Map<string, string>()
  const reply = { request: { url: target }, header: (name: string, value: string) => headers.set(name, value) }
  linkNext(reply as unknown as FastifyReply, publicUrl, 'here')
  return headers
}

test.each(['/v1/keys?limit=1&cursor=before', 'http://elsewhere.example/v1/keys?limit=1&cursor=before'])(
  'the next page of %s is this server’s, under the address that clients use',
  (target) => {
    expect(headersFor(target, 'https://chowder.test:8080/api').get('link')).toBe(
      '<https://chowder.test:8080/api/v1/keys?limit=1&cursor=aGVyZQ>; rel="next"',
    )
  },
)

test('the cursor of the link is also a header of its own, and decodes to its position', () => {
  const headers = headersFor('/v1/keys', 'http://chowder.test')
  const cursor = new URL(/<(.+)>/.exec(headers.get('link') ?? '')?.[1] ?? '').searchParams.get('cursor')
  expect(headers.get('x-next-cursor')).toBe(cursor)
  expect(positionOf(cursor ?? '', (text) => text === 'here')).toBe('here')
})
