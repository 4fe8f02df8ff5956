import type { FastifyReply } from 'fastify'
import { expect, test } from 'vitest'
import { linkNext, positionOf } from '#http/paging.ts'

function linkFor(target: string, publicUrl: string): string {
  let link = ''
  const reply = { request: { url: target }, header: (_name: string, value: string) => (link = value) }
  linkNext(reply as unknown as FastifyReply, publicUrl, 'here')
  return link
}

test.each(['/v1/keys?limit=1&cursor=before', 'http://elsewhere.example/v1/keys?limit=1&cursor=before'])(
  'the next page of %s is this server’s, under the address that clients use',
  (target) => {
    expect(linkFor(target, 'https://chowder.test:8080/api')).toBe(
      '<https://chowder.test:8080/api/v1/keys?limit=1&cursor=aGVyZQ>; rel="next"',
    )
  },
)

test('a cursor decodes to its position', () => {
  const cursor = new URL(/<(.+)>/.exec(linkFor('/v1/keys', 'http://chowder.test'))?.[1] ?? '').searchParams.get(
    'cursor',
  )
  expect(positionOf(cursor ?? '', (text) => text === 'here')).toBe('here')
})
