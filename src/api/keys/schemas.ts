import { type Static, Type } from '@sinclair/typebox'
import { permissions } from '#database/schema.ts'
import { Name, Nullable, OneOf } from '#http/validation.ts'
import { toSeconds } from '#platform/timestamps.ts'
import type { KeyRow } from './store.ts'

const fields = {
  id: Type.String(),
  organization_id: Type.String(),
  name: Type.String(),
  key_prefix: Type.String({ description: 'The first characters of the key, to tell keys apart.' }),
  is_active: Type.Boolean({ description: 'False once the key is revoked or has expired.' }),
  expires_at: Nullable(Type.String({ description: 'When the key ends by itself; null lives until it is revoked.' })),
  last_used_at: Nullable(
    Type.String({ description: 'When the key was last used, to the minute; null when it never was.' }),
  ),
  created_at: Type.String(),
}

const example = {
  id: 'b2f4e8a1-3c7d-4e9f-a5b6-1d8e3f7c2a94',
  organization_id: '4737cccd-3d1d-4790-979b-6825d6a333de',
  name: 'frontend-chat',
  key_prefix: 'chd_sk_f3a8....',
  is_active: true,
  expires_at: '2026-12-31T23:59:59Z',
  last_used_at: null,
  created_at: '2026-02-14T12:00:00Z',
}
const instanceId = '0199f7a2-5b1e-7c3d-9a4f-2e6b8d0c1f35'

export const Key = Type.Object(fields, { $id: 'Key', examples: [example] })

export const NewKey = Type.Object(
  { ...fields, raw_key: Type.String({ description: 'The key itself. It is in this answer and nowhere else.' }) },
  { $id: 'NewKey', examples: [{ ...example, raw_key: 'chd_sk_f3a8…' }] },
)

const Permissions = Type.Array(OneOf(permissions), { minItems: 1, maxItems: permissions.length, uniqueItems: true })

export const KeyWithGrants = Type.Object(
  {
    ...fields,
    instances: Type.Array(Type.Object({ instance_id: Type.String(), permissions: Type.Array(OneOf(permissions)) }), {
      description: 'What the key may do, on which instances.',
    }),
  },
  {
    $id: 'KeyWithGrants',
    examples: [{ ...example, instances: [{ instance_id: instanceId, permissions: ['read', 'interact'] }] }],
  },
)

const ExpiresAt = Nullable(
  Type.String({
    maxLength: 64,
    description: 'A time in the future, ISO 8601 with a zone. Null, or left out: the key lives until it is revoked.',
  }),
)

export const CreateKey = Type.Object(
  {
    name: { ...Name, description: 'What people call the key.' },
    instance_ids: Type.Array(Type.String({ maxLength: 64 }), {
      minItems: 1,
      maxItems: 100,
      uniqueItems: true,
      description: 'The instances that the key is for.',
    }),
    permissions: { ...Permissions, description: 'What the key may do on each of them. None includes another.' },
    expires_at: Type.Optional(ExpiresAt),
  },
  {
    additionalProperties: false,
    examples: [{ name: 'frontend-chat', instance_ids: [instanceId], permissions: ['read', 'interact'] }],
  },
)

export const PatchKey = Type.Object(
  {
    name: Type.Optional({ ...Name, description: 'What people call the key.' }),
    expires_at: Type.Optional({
      ...ExpiresAt,
      description: 'A time in the future, ISO 8601 with a zone. Null lets the key live until it is revoked.',
    }),
  },
  { additionalProperties: false, examples: [{ expires_at: '2026-12-31T23:59:59Z' }] },
)

export const CreateOrganizationKey = Type.Object(
  { name: { ...Name, description: 'What people call the key.' }, expires_at: Type.Optional(ExpiresAt) },
  { additionalProperties: false, examples: [{ name: 'backend-2' }] },
)

/** What callers see of a key: never the key, nor its hash. */
export const toKey = (row: KeyRow): Static<typeof Key> => ({
  id: row.id,
  organization_id: row.organizationId,
  name: row.name,
  key_prefix: row.keyPrefix,
  is_active: row.isActive,
  expires_at: row.expiresAt && toSeconds(row.expiresAt),
  last_used_at: row.lastUsedAt && toSeconds(row.lastUsedAt),
  created_at: toSeconds(row.createdAt),
})

export const toKeyWithGrants = (row: KeyRow): Static<typeof KeyWithGrants> => ({
  ...toKey(row),
  instances: (row.instanceIds ?? []).map((id) => ({ instance_id: id, permissions: row.permissions ?? [] })),
})
