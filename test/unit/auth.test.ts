import fastify from 'fastify'
import { describe, expect, test } from 'vitest'
import { authorize, type Caller, useApiKeys } from '#http/auth.ts'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'

const own = '0199f7a2-5b1e-7c3d-9a4f-2e6b8d0c1f35'
const other = '0199f7a2-5b1e-7c3d-9a4f-2e6b8d0c1f36'
const foreign = '0199f7a2-5b1e-7c3d-9a4f-2e6b8d0c1f37'

const organizationKey: Caller = {
  organizationId: 'org',
  keyId: 'key',
  keyHash: 'hash',
  permissions: null,
  instanceIds: null,
}
const scopedKey: Caller = { ...organizationKey, permissions: ['read', 'files'], instanceIds: [own] }

/** What `authorize` says, and whether it had to ask for the instance. */
async function verdict(caller: Caller, access: 'org' | 'read' | 'files' | 'channels', instanceId?: string) {
  const asked: string[][] = []
  const requireInstance = async (...ids: string[]) => {
    asked.push(ids)
    if (ids[1] !== other) throw new AppError('not_found', texts.instanceNotFound)
  }
  const outcome = await authorize(caller, access, instanceId, requireInstance).then(
    () => 'allowed',
    (error: AppError) => `${error.kind}: ${error.message}`,
  )
  return { outcome, asked: asked.length }
}

describe('authorize', () => {
  test('lets an organization key do everything, without asking for the instance', async () => {
    for (const access of ['org', 'read', 'channels'] as const) {
      expect(await verdict(organizationKey, access, foreign)).toEqual({ outcome: 'allowed', asked: 0 })
    }
  })

  test('lets a scoped key do what it holds on its instances', async () => {
    expect(await verdict(scopedKey, 'read', own)).toEqual({ outcome: 'allowed', asked: 0 })
    expect(await verdict(scopedKey, 'files', own)).toEqual({ outcome: 'allowed', asked: 0 })
  })

  test('names the permission that is missing', async () => {
    const { outcome } = await verdict(scopedKey, 'channels', own)
    expect(outcome).toMatch(/^forbidden: Your key lacks the permission "channels"/)
  })

  test('keeps what needs an organization key from a scoped one, whatever the instance', async () => {
    for (const id of [undefined, own, other, foreign]) {
      const { outcome, asked } = await verdict(scopedKey, 'org', id)
      expect([outcome, asked]).toEqual([expect.stringMatching(/^forbidden: .*organization key/), 0])
    }
  })

  test('says so when the instance is another one of its organization, and not_found when it is not', async () => {
    expect((await verdict(scopedKey, 'read', other)).outcome).toBe(`forbidden: ${texts.notForInstance}`)
    for (const id of [foreign, 'nonsense', '']) {
      expect((await verdict(scopedKey, 'read', id)).outcome).toBe(`not_found: ${texts.instanceNotFound}`)
      // Also without the permission: else the two answers would tell an instance's existence.
      expect((await verdict(scopedKey, 'channels', id)).outcome).toBe(`not_found: ${texts.instanceNotFound}`)
    }
  })

  test('gives a scoped key without instances nothing', async () => {
    const { outcome } = await verdict({ ...scopedKey, instanceIds: null }, 'read', other)
    expect(outcome).toBe(`forbidden: ${texts.notForInstance}`)
  })
})

test.each([
  ['declares no access', '/v1/things', {}, /declares no access/],
  ['is for scoped keys without an instance_id', '/v1/things/:id', { access: 'read' }, /no instance_id/],
] as const)('a route that %s stops the boot', (_what, url, config, message) => {
  const app = fastify()
  useApiKeys(
    app,
    async () => null,
    async () => {},
    { countRequest: async () => {}, countFailure: async () => {} },
  )
  expect(() => app.get(url, { config }, async () => 'open')).toThrow(message)
})
