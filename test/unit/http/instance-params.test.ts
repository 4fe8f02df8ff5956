import fastify from 'fastify'
import { expect, test } from 'vitest'
import { newApiKey } from '#http/api-key.ts'
import { useApiKeys } from '#http/auth.ts'
import type { Caller } from '#http/caller.ts'
import { useInstanceIds } from '#http/instance-params.ts'
import { newId } from '#platform/ids.ts'

const id = newId()
const scoped: Caller = {
  organizationId: newId(),
  keyId: newId(),
  keyHash: '',
  permissions: ['files'],
  instanceIds: [id],
  sessions: null,
  token: null,
}
const headers = { authorization: `Bearer ${newApiKey('scoped')}` }

test('an instance id in capitals is canonical before the key is held against it and the handler reads it', async () => {
  const app = fastify()
  useInstanceIds(app)
  useApiKeys(
    app,
    { findCaller: async () => scoped, findTokenCaller: async () => null, requireInstance: async () => null },
    { countRequest: async () => {}, countFailure: async () => {} },
  )
  app.get('/:instance_id/files', { config: { access: 'files' } }, async ({ params }) => params)
  const { statusCode, body } = await app.inject({ url: `/${id.toUpperCase()}/files`, headers })
  expect({ statusCode, body: JSON.parse(body) }).toEqual({ statusCode: 200, body: { instance_id: id } })
})
