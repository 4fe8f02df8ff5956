import { type Static, Type } from '@sinclair/typebox'
import { permissions } from '#database/schema.ts'
import type { RateLimits } from '#http/rate-limit.ts'
import { DateTime, Name, Nullable, OneOf, Uuid } from '#http/validation.ts'
import { toSeconds } from '#platform/timestamps.ts'
import type { KeyRow } from './store.ts'

const fields = {
  id: Uuid('The id of the key. The history names it as the actor.'),
  organization_id: Uuid('The id of the organization that the key belongs to.'),
  name: Type.String({ description: 'A name for people.' }),
  key_prefix: Type.String({ description: 'The first characters of the key, to recognize it.' }),
  is_active: Type.Boolean({ description: 'False once the key is revoked or has expired.' }),
  expires_at: Nullable(DateTime('When the key expires; null for a key that is valid until it is revoked.')),
  last_used_at: Nullable(DateTime('The time of the last use, accurate to a minute; null if there was none.')),
  created_at: DateTime('The time when the key was created.'),
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
  { ...fields, raw_key: Type.String({ description: 'The key itself. It is in this answer only.' }) },
  { $id: 'NewKey', examples: [{ ...example, raw_key: 'chd_sk_f3a8…' }] },
)

const Permissions = Type.Array(OneOf(permissions), { minItems: 1, maxItems: permissions.length, uniqueItems: true })

export const KeyWithGrants = Type.Object(
  {
    ...fields,
    instances: Type.Array(
      Type.Object({
        instance_id: Uuid('The id of the instance.'),
        permissions: Type.Array(OneOf(permissions), { description: 'What the key may do with it.' }),
      }),
      { description: 'The permissions of the key, for each instance.' },
    ),
  },
  {
    $id: 'KeyWithGrants',
    examples: [{ ...example, instances: [{ instance_id: instanceId, permissions: ['read', 'interact'] }] }],
  },
)

export const CurrentKey = Type.Object(
  {
    kind: OneOf(
      ['organization', 'scoped'],
      '`organization`: may do everything in its organization. `scoped`: has its permissions on its instances.',
    ),
    ...fields,
    organization_name: Type.String({ description: 'The name of the organization that the key acts for.' }),
    permissions: Type.Array(OneOf(permissions), {
      description: 'What the key may do; an organization key everything.',
    }),
    instance_ids: Nullable(
      Type.Array(Type.String({ format: 'uuid' }), {
        description: 'The instances that the key is for; null for all of the organization, also future ones.',
      }),
    ),
    limits: Type.Object(
      {
        requests_per_minute: Nullable(
          Type.Integer({ description: 'The requests with this key that are allowed in a minute; null for no limit.' }),
        ),
        organization_requests_per_minute: Nullable(
          Type.Integer({
            description: 'The requests with all keys of the organization that are allowed in a minute; null for no limit.',
          }),
        ),
      },
      { description: 'What this server allows the key.' },
    ),
  },
  {
    $id: 'CurrentKey',
    examples: [
      {
        kind: 'scoped',
        ...example,
        organization_name: 'Acme',
        permissions: ['read', 'interact'],
        instance_ids: [instanceId],
        limits: { requests_per_minute: 600, organization_requests_per_minute: 3000 },
      },
    ],
  },
)

const ExpiresAt = Nullable(
  Type.String({
    format: 'date-time',
    maxLength: 64,
    description:
      'A time in the future, ISO 8601 with a zone. If it is null or left out, the key is valid until it is revoked.',
  }),
)

export const CreateKey = Type.Object(
  {
    name: { ...Name, description: 'A name for people.' },
    instance_ids: Type.Array(Type.String({ format: 'uuid', maxLength: 64 }), {
      minItems: 1,
      maxItems: 100,
      uniqueItems: true,
      description: 'The instances that the key is for.',
    }),
    permissions: { ...Permissions, description: 'The permissions on each of them. No permission includes another.' },
    expires_at: Type.Optional(ExpiresAt),
  },
  {
    additionalProperties: false,
    examples: [{ name: 'frontend-chat', instance_ids: [instanceId], permissions: ['read', 'interact'] }],
  },
)

export const PatchKey = Type.Object(
  {
    name: Type.Optional({ ...Name, description: 'A name for people.' }),
    expires_at: Type.Optional({
      ...ExpiresAt,
      description: 'A time in the future, ISO 8601 with a zone. With null, the key is valid until it is revoked.',
    }),
  },
  { additionalProperties: false, examples: [{ expires_at: '2026-12-31T23:59:59Z' }] },
)

export const CreateOrganizationKey = Type.Object(
  { name: { ...Name, description: 'A name for people.' }, expires_at: Type.Optional(ExpiresAt) },
  { additionalProperties: false, examples: [{ name: 'backend-2' }] },
)

/** The key as callers see it: without the key itself and its hash. */
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

export type KeyLimits = Pick<RateLimits, 'requestsPerMinute' | 'organizationRequestsPerMinute'>

/** The key of a request. A limit of 0 is none. */
export const toCurrentKey = (
  row: KeyRow,
  organizationName: string,
  limits: KeyLimits,
): Static<typeof CurrentKey> => ({
  kind: row.permissions === null ? 'organization' : 'scoped',
  ...toKey(row),
  organization_name: organizationName,
  permissions: row.permissions ?? [...permissions],
  instance_ids: row.instanceIds,
  limits: {
    requests_per_minute: limits.requestsPerMinute || null,
    organization_requests_per_minute: limits.organizationRequestsPerMinute || null,
  },
})
