import { type Static, Type } from '@sinclair/typebox'
import { permissions } from '#database/schema.ts'
import type { Caller } from '#http/caller.ts'
import type { RateLimits } from '#http/rate-limit.ts'
import { toSeconds } from '#platform/timestamps.ts'
import { DateTime, Name, Nullable, OneOf, Uuid } from '#platform/typebox.ts'
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

const shownSessions = {
  session_ids: Nullable(
    Type.Array(Type.String(), {
      description: 'The sessions that exist for the key, beside those of `session_prefix`; both are null for all.',
    }),
  ),
  session_prefix: Nullable(Type.String({ description: 'What the ids of sessions that exist for the key begin with.' })),
}
const everySession = { session_ids: null, session_prefix: null }

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
    ...shownSessions,
  },
  {
    $id: 'KeyWithGrants',
    examples: [
      {
        ...example,
        instances: [{ instance_id: instanceId, permissions: ['read', 'interact'] }],
        ...everySession,
      },
    ],
  },
)

export const CurrentKey = Type.Object(
  {
    kind: OneOf(
      ['organization', 'scoped', 'client_token'],
      '`organization`: may do everything in its organization. `scoped`: has its permissions on its instances. ' +
        '`client_token`: a token that a key made; the other fields are those of the key.',
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
    ...shownSessions,
    limits: Type.Object(
      {
        requests_per_minute: Nullable(
          Type.Integer({ description: 'The requests with this key that are allowed in a minute; null for no limit.' }),
        ),
        organization_requests_per_minute: Nullable(
          Type.Integer({
            description:
              'The requests with all keys of the organization that are allowed in a minute; null for no limit.',
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
        ...everySession,
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

const SessionId = Type.String({ minLength: 1, maxLength: 200 })
const sessionFields = {
  session_ids: Type.Optional(
    Type.Array(SessionId, {
      minItems: 1,
      maxItems: 100,
      uniqueItems: true,
      description: 'Only these sessions exist for it, and those of `session_prefix`; `main` only if it is named.',
    }),
  ),
  session_prefix: Type.Optional({
    ...SessionId,
    description: 'Only sessions whose id begins with this exist for it, and those of `session_ids`.',
  }),
}

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
    ...sessionFields,
    expires_at: Type.Optional(ExpiresAt),
  },
  {
    additionalProperties: false,
    examples: [{ name: 'frontend-chat', instance_ids: [instanceId], permissions: ['read', 'interact'] }],
  },
)

/** A token is for one visit: its holder's browser requests the next one. */
export const maxTokenSeconds = 3600

export const CreateClientToken = Type.Object(
  {
    ...sessionFields,
    end_user: Type.Optional(
      Type.String({
        minLength: 1,
        maxLength: 200,
        description:
          'Your own id of the person: all tokens for it share a limit of requests, and the budgets of the end user.',
      }),
    ),
    expires_in: Type.Optional(
      Type.Integer({
        minimum: 1,
        maximum: maxTokenSeconds,
        default: maxTokenSeconds,
        description: 'The seconds until the token expires.',
      }),
    ),
  },
  { additionalProperties: false, examples: [{ session_prefix: 'user-42-', end_user: 'user-42', expires_in: 900 }] },
)

export const ClientToken = Type.Object(
  {
    client_token: Type.String({ description: 'The token, which is stored nowhere: it is in this answer only.' }),
    expires_at: DateTime('The time when the token expires.'),
  },
  { $id: 'ClientToken', examples: [{ client_token: 'chd_ct_v2.1a2b3c4d.f3a8…', expires_at: '2026-12-31T23:59:59Z' }] },
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

/** The key in the API, without its secret and its hash. */
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
  session_ids: row.sessionIds,
  session_prefix: row.sessionPrefix,
})

export type KeyLimits = Pick<RateLimits, 'requestsPerMinute' | 'organizationRequestsPerMinute'>

/** The key of a request, with its permissions. A limit of 0 means no limit. */
export const toCurrentKey = (
  row: KeyRow,
  caller: Caller,
  organizationName: string,
  limits: KeyLimits,
): Static<typeof CurrentKey> => ({
  ...toKey(row),
  kind: caller.token ? 'client_token' : row.permissions === null ? 'organization' : 'scoped',
  ...(caller.token && { expires_at: toSeconds(new Date(caller.token.expiresAt)) }),
  organization_name: organizationName,
  permissions: [...(caller.permissions ?? permissions)],
  instance_ids: caller.instanceIds && [...caller.instanceIds],
  session_ids: caller.sessions && [...caller.sessions.ids],
  session_prefix: caller.sessions?.prefix ?? null,
  limits: {
    requests_per_minute: limits.requestsPerMinute || null,
    organization_requests_per_minute: limits.organizationRequestsPerMinute || null,
  },
})
