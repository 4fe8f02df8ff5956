import { type Static, type TSchema, Type } from '@sinclair/typebox'
import { Budget, NewBudgets, type ShownBudget } from '#budgets/schemas.ts'
import { isolations, modelProviders, type Organization as Row, tiers } from '#database/schema.ts'
import { Egress, NewEgress } from '#egress/schemas.ts'
import { namedExamples } from '#http/examples.ts'
import { limitFields, limitOf, ResourceChanges } from '#http/resource-fields.ts'
import { limitsFor, maximaOf } from '#instances/resources.ts'
import { toMicroseconds } from '#platform/timestamps.ts'
import { DateTime, Name, Nullable, OneOf, textRule, Uuid } from '#platform/typebox.ts'
import { type ResourceSettings, usualMaxima, usualResources } from '#settings/resources.ts'
import type { StoredKey } from './store.ts'

const example = {
  id: 'a1b2c3d4-e5f6-7890-abcd-ef1234567890',
  name: 'Acme',
  model_providers: ['anthropic'],
  model_api_keys: { anthropic: { set_at: '2026-02-14T14:30:00.000000+00:00', refused_at: null } },
  subscription_tier: 'crab' as const,
  instance_limit: 10,
  instance_count: 1,
  resources: usualResources,
  max_resources: usualMaxima,
  isolation: 'one_room' as const,
  egress: null,
  budgets: [],
  created_at: '2026-02-14T12:00:00.000000+00:00',
  updated_at: '2026-02-14T14:30:00.000000+00:00',
}

const DefaultIsolation = OneOf(
  isolations,
  'Where the tools of a new agent run, unless its creator says so: see the field of an instance.',
)

const StoredModelKey = Type.Object(
  {
    set_at: DateTime('When the key was set.'),
    refused_at: Nullable(
      DateTime(
        'When the provider last refused the key, to the minute: to a turn, to a new agent or to a test. null if it has ' +
          'not since the key was set, as far as Chowder knows.',
      ),
    ),
  },
  { description: 'A stored key of the organization.' },
)

const egressDescription =
  'What agents may reach beside models: an `egress` of an instance narrows it. null is `open`. Holds within a second, ' +
  'also for open connections.'

export const Organization = Type.Object(
  {
    id: Uuid('The id of the organization.'),
    name: Type.String({ description: 'The name for people; two organizations may have the same.' }),
    model_providers: Type.Array(Type.String(), { description: 'The model providers that a key is stored for.' }),
    model_api_keys: Type.Object(
      Object.fromEntries(modelProviders.map((provider) => [provider, Type.Optional(StoredModelKey)])),
      { description: 'What is known of each stored key, by model provider. The keys themselves are never shown.' },
    ),
    subscription_tier: OneOf(tiers, 'The plan: `shrimp` has 1 instance, `crab` 10, `lobster` 500, `whale` any number.'),
    instance_limit: Nullable(
      Type.Integer({ description: 'The number of instances that the plan allows; null for no limit.' }),
    ),
    instance_count: Type.Integer({
      description: 'The number of instances that are not terminated. Stopped instances count.',
    }),
    resources: Type.Object(limitFields(limitOf), {
      description: 'What an agent may use that has no limits of its own.',
    }),
    max_resources: Type.Object(limitFields(limitOf), {
      description: 'The most that an agent may have. Only the operator of the server can change it.',
    }),
    isolation: DefaultIsolation,
    egress: Type.Unsafe<Static<typeof Egress> | null>({
      ...Type.Object(Egress.properties),
      type: ['object', 'null'],
      description: egressDescription,
    }),
    budgets: Type.Array(Budget, { description: 'What models may use for all instances.' }),
    created_at: DateTime('When the organization signed up.'),
    updated_at: DateTime('When its name, its keys or its plan were last changed.'),
  },
  {
    $id: 'Organization',
    description: 'A customer of this server: the owner of instances and keys.',
    examples: [example],
  },
)

export const Signup = Type.Object({ name: Name }, { additionalProperties: false, examples: [{ name: 'Acme' }] })

export const NewOrganization = Type.Object(
  {
    organization: Organization,
    api_key: Type.String({ description: 'The organization key. It cannot be fetched again.' }),
  },
  {
    $id: 'NewOrganization',
    examples: [
      {
        organization: {
          ...example,
          model_providers: [],
          model_api_keys: {},
          subscription_tier: 'shrimp',
          instance_limit: 1,
          instance_count: 0,
        },
        api_key: 'chd_org_f3a8…',
      },
    ],
  },
)

/** Only visible ASCII, because the key is sent in an HTTP header. Quotes come from a copied line of code. */
const providerKey = {
  maxLength: 512,
  ...textRule(
    '^[\\x21\\x23-\\x26\\x28-\\x7e]*$',
    'must be the key alone: visible ASCII characters without quotes, spaces or line ends',
  ),
}
const ProviderKey = Type.String({
  ...providerKey,
  description: 'Encrypted when stored, and never shown again. null or an empty text removes the key.',
})

const keyOfEach = <Key extends TSchema>(key: Key, description: string) =>
  Type.Optional(
    Type.Object(Object.fromEntries(modelProviders.map((provider) => [provider, Type.Optional(key)])), {
      additionalProperties: false,
      description,
    }),
  )

export const PatchOrganization = Type.Object(
  {
    name: Type.Optional(Name),
    model_api_keys: keyOfEach(Nullable(ProviderKey), 'The keys to set, by model provider.'),
    resources: Type.Optional({
      ...ResourceChanges,
      description:
        'What an agent may use that has no limits of its own. Sets the limits that are sent, and keeps the others; null ' +
        'stands for those of the server. Running agents get them within a minute, without a restart.',
    }),
    isolation: Type.Optional(DefaultIsolation),
    egress: Type.Optional(Nullable({ ...NewEgress, description: egressDescription })),
    budgets: Type.Optional(NewBudgets),
    verify: Type.Optional(
      Type.Boolean({
        description:
          'Whether to ask each provider about its key before it is stored. If one refuses its key, or cannot be ' +
          'reached, nothing is changed. By default false.',
      }),
    ),
  },
  {
    additionalProperties: false,
    ...namedExamples({
      'a key of a provider': { model_api_keys: { anthropic: 'sk-ant-api03-example' }, verify: true },
      budgets: {
        budgets: [
          { name: 'monthly', limit: { usd: 100 }, per: 'month', time_zone: 'Europe/Berlin' },
          { name: 'each-user', scope: 'end_user', limit: { tokens: 100_000 }, per: 'day' },
        ],
      },
    }),
  },
)

export const TestModelKeys = Nullable(
  Type.Object(
    {
      model_api_keys: keyOfEach(
        Type.String({ ...providerKey, minLength: 1, description: 'Tested, and not stored.' }),
        'The keys to test, by model provider. Without it, the stored keys are tested.',
      ),
    },
    { additionalProperties: false, examples: [{ model_api_keys: { anthropic: 'sk-ant-api03-example' } }] },
  ),
)

export const ModelKeyTests = Type.Object(
  {
    results: Type.Array(
      Type.Object({
        provider: OneOf(modelProviders, 'The model provider.'),
        status: OneOf(
          ['ok', 'refused', 'unreachable'],
          'Whether the provider accepts the key; `unreachable` when it could not be asked.',
        ),
        message: Nullable(Type.String({ description: 'What the provider says; null when it says nothing.' })),
      }),
      { description: 'One result for each key, in the order anthropic, openai, gemini.' },
    ),
  },
  {
    $id: 'ModelKeyTests',
    examples: [
      {
        results: [
          { provider: 'anthropic', status: 'ok', message: null },
          { provider: 'openai', status: 'refused', message: 'Incorrect API key provided: ….' },
        ],
      },
    ],
  },
)

export const DeleteOrganization = Type.Object(
  {
    name: Type.String({
      maxLength: 128,
      description: 'The exact name of the organization, as a protection against mistakes.',
    }),
  },
  { additionalProperties: false, examples: [{ name: 'Acme' }] },
)

/** The organization in the API: with the providers that have a key, without the keys. */
export const toOrganization = (
  row: Row,
  settings: ResourceSettings,
  keys: readonly StoredKey[],
  budgets: ShownBudget[] = [],
): Static<typeof Organization> => ({
  id: row.id,
  name: row.name,
  model_providers: keys.map(({ provider }) => provider),
  model_api_keys: Object.fromEntries(
    keys.map(({ provider, setAt, refusedAt }) => [
      provider,
      { set_at: toMicroseconds(setAt), refused_at: refusedAt && toMicroseconds(refusedAt) },
    ]),
  ),
  subscription_tier: row.subscriptionTier,
  instance_limit: row.instanceLimit,
  instance_count: row.instanceCount,
  resources: limitsFor({}, row, settings),
  max_resources: maximaOf(row, settings),
  isolation: row.isolation,
  egress: row.egress,
  budgets,
  created_at: toMicroseconds(row.createdAt),
  updated_at: toMicroseconds(row.updatedAt),
})
