import fastify from 'fastify'
import { describe, expect, test } from 'vitest'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { authorize, useApiKeys } from '#http/auth.ts'
import type { Caller } from '#http/caller.ts'

const own = '0199f7a2-5b1e-7c3d-9a4f-2e6b8d0c1f35'
const other = '0199f7a2-5b1e-7c3d-9a4f-2e6b8d0c1f36'
const foreign = '0199f7a2-5b1e-7c3d-9a4f-2e6b8d0c1f37'

const organizationKey: Caller = {
  organizationId: 'org',
  keyId: 'key',
  keyHash: 'hash',
  permissions: null,
  instanceIds: null,
  sessions: null,
  token: null,
}
const scopedKey: Caller = { ...organizationKey, permissions: ['read', 'files'], instanceIds: [own] }

/** The outcome of `authorize`, and the number of its queries for the instance. */
async function verdict(caller: Caller, access: 'org' | 'read' | 'files' | 'channels', instanceId?: string) {
  const asked: string[][] = []
  const requireInstance = async (...ids: string[]) => {
    asked.push(ids)
    if (ids[1] !== other) throw new AppError('instance_not_found', texts.instanceNotFound)
  }
  const outcome = await authorize(caller, access, instanceId, requireInstance).then(
    () => 'allowed',
    (error: AppError) => `${error.kind}: ${error.message}`,
  )
  return { outcome, asked: asked.length }
}

describe('authorize', () => {
  test('allows an organization key every call, without a query for the instance', async () => {
    for (const access of ['org', 'read', 'channels'] as const) {
      expect(await verdict(organizationKey, access, foreign)).toEqual({ outcome: 'allowed', asked: 0 })
    }
  })

  test('allows a scoped key its permissions on its instances', async () => {
    expect(await verdict(scopedKey, 'read', own)).toEqual({ outcome: 'allowed', asked: 0 })
    expect(await verdict(scopedKey, 'files', own)).toEqual({ outcome: 'allowed', asked: 0 })
  })

  test('names the missing permission', async () => {
    const { outcome } = await verdict(scopedKey, 'channels', own)
    expect(outcome).toMatch(/^forbidden: Your key lacks the permission "channels"/)
  })

  test('refuses a scoped key where an organization key is needed, for every instance', async () => {
    for (const id of [undefined, own, other, foreign]) {
      const { outcome, asked } = await verdict(scopedKey, 'org', id)
      expect([outcome, asked]).toEqual([expect.stringMatching(/^forbidden: .*organization key/), 0])
    }
  })

  test('names another instance of the same organization as the reason, and is not_found for any other', async () => {
    expect((await verdict(scopedKey, 'read', other)).outcome).toBe(`forbidden: ${texts.notForInstance}`)
    for (const id of [foreign, 'nonsense', '']) {
      expect((await verdict(scopedKey, 'read', id)).outcome).toBe(`not_found: ${texts.instanceNotFound}`)
      // Also without the permission: otherwise the two answers would reveal that an instance exists.
      expect((await verdict(scopedKey, 'channels', id)).outcome).toBe(`not_found: ${texts.instanceNotFound}`)
    }
  })

  test('refuses everything to a scoped key without instances', async () => {
    const { outcome } = await verdict({ ...scopedKey, instanceIds: null }, 'read', other)
    expect(outcome).toBe(`forbidden: ${texts.notForInstance}`)
  })
})

test.each([
  ['declares no access', '/v1/things', {}, /declares no access/],
  ['is for scoped keys without an instance_id', '/v1/things/:id', { access: 'read' }, /no instance_id/],
  ['is about no known session', '/v1/:x/:instance_id/things', { access: 'interact' }, /which session/],
] as const)('a route that %s stops the boot', (_what, url, config, message) => {
  const app = fastify()
  useApiKeys(
    app,
    { findCaller: async () => null, findTokenCaller: async () => null, requireInstance: async () => {} },
    { countRequest: async () => {}, countFailure: async () => {} },
  )
  expect(() => app.get(url, { config }, async () => 'open')).toThrow(message)
})
