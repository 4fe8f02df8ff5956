import { type Static, Type } from '@sinclair/typebox'
import { modelProviders, type Organization as Row, tiers } from '../database/schema.ts'
import { toMicroseconds } from '../platform/timestamps.ts'
import { Name, Nullable, OneOf } from '../platform/validation.ts'

export const Organization = Type.Object(
  {
    id: Type.String(),
    name: Type.String(),
    model_providers: Type.Array(Type.String()),
    subscription_tier: OneOf(tiers),
    instance_limit: Nullable(Type.Integer()),
    instance_count: Type.Integer(),
    created_at: Type.String(),
    updated_at: Type.String(),
  },
  { $id: 'Organization' },
)

export const Signup = Type.Object({ name: Name }, { additionalProperties: false })

/** Empty removes the key. It becomes an HTTP header, so it holds visible ASCII only. */
const ProviderKey = Type.String({ maxLength: 512, pattern: '^[\\x21-\\x7e]*$' })

export const PatchOrganization = Type.Object(
  {
    name: Type.Optional(Name),
    model_api_keys: Type.Optional(
      Type.Object(Object.fromEntries(modelProviders.map((provider) => [provider, Type.Optional(ProviderKey)])), {
        additionalProperties: false,
      }),
    ),
  },
  { additionalProperties: false },
)

/** What callers see of an organization: never a key, only which providers have one. */
export const toOrganization = (row: Row, modelProviders: readonly string[]): Static<typeof Organization> => ({
  id: row.id,
  name: row.name,
  model_providers: [...modelProviders],
  subscription_tier: row.subscriptionTier,
  instance_limit: row.instanceLimit,
  instance_count: row.instanceCount,
  created_at: toMicroseconds(row.createdAt),
  updated_at: toMicroseconds(row.updatedAt),
})
