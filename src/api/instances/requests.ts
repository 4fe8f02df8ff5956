import { Type } from '@sinclair/typebox'
import { NewBudgets } from '#budgets/schemas.ts'
import { modelProviders } from '#database/schema.ts'
import { NewEgress } from '#egress/schemas.ts'
import { namedExamples } from '#http/examples.ts'
import { PageQuery } from '#http/paging.ts'
import { ResourceChanges } from '#http/resource-fields.ts'
import { instanceStatuses, waitTargets } from '#instances/status.ts'
import { Name, Nullable, OneOf } from '#platform/typebox.ts'
import {
  ExternalId,
  egressDescription,
  Instructions,
  Isolation,
  label,
  labels,
  Metadata,
  Model,
  Overrides,
  overridesDescription,
  RegionName,
} from './fields.ts'

export const CreateInstance = Type.Object(
  {
    name: Name,
    external_id: Type.Optional(Nullable(ExternalId)),
    if_exists: Type.Optional(
      OneOf(
        ['error', 'return'],
        'What to do when an instance has the `external_id` already: `error` answers 409 with its id, `return` ' +
          'answers 200 with the instance as it is, whatever the other fields say. `error` if left out.',
      ),
    ),
    metadata: Type.Optional(Metadata),
    model_provider: Type.Optional(
      OneOf(
        modelProviders,
        'The provider of the agent’s models. Your organization must have a key for it. `anthropic` if left out.',
      ),
    ),
    sandbox_provider: Type.Optional(OneOf(['sandbox'], 'How the agent is kept apart.')),
    model: Type.Optional(Nullable(Model)),
    instructions: Type.Optional(Nullable(Instructions)),
    openclaw_version: Type.Optional(
      Type.String({ maxLength: 64, description: 'The OpenClaw release; the newest known release if left out.' }),
    ),
    openclaw_config: Type.Optional(Nullable({ ...Overrides, description: overridesDescription })),
    isolation: Type.Optional({
      ...Isolation,
      description: `${Isolation.description} That of the organization if left out.`,
    }),
    budgets: Type.Optional(NewBudgets),
    resources: Type.Optional(ResourceChanges),
    egress: Type.Optional(Nullable({ ...NewEgress, description: egressDescription })),
    region: Type.Optional(
      Nullable({ ...RegionName, description: `${RegionName.description} The default one if null or left out.` }),
    ),
  },
  {
    additionalProperties: false,
    ...namedExamples({
      'name only': { name: 'my-assistant' },
      'your own id and labels': {
        name: 'my-assistant',
        external_id: 'agent-of-cust-42',
        if_exists: 'return',
        metadata: { customer: 'cust-42' },
      },
      'model and instructions': {
        name: 'my-assistant',
        model_provider: 'anthropic',
        model: 'claude-opus-5',
        instructions: 'You are a helpful assistant.',
      },
      'OpenClaw settings': { name: 'my-assistant', openclaw_config: { 'agents.defaults.thinkingDefault': 'low' } },
    }),
  },
)

export const PatchInstance = Type.Object(
  {
    name: Type.Optional(Name),
    external_id: Type.Optional(
      Nullable({ ...ExternalId, description: `${ExternalId.description} null removes it. Needs an organization key.` }),
    ),
    metadata: Type.Optional(
      Nullable(
        Type.Unsafe<Record<string, string | null>>({
          ...labels,
          additionalProperties: { ...label, type: ['string', 'null'] },
          description:
            'Your own labels. Sets the keys that are sent, removes those that are null, and keeps the others; null ' +
            'removes all. At most 16 remain.',
        }),
      ),
    ),
    model: Type.Optional(Nullable(Model)),
    instructions: Type.Optional(Nullable(Instructions)),
    openclaw_config: Type.Optional(
      Nullable({
        ...Overrides,
        description: `${overridesDescription} Replaces all stored overrides; null removes them.`,
      }),
    ),
    isolation: Type.Optional({
      ...Isolation,
      description: `${Isolation.description} Restarts an agent that runs otherwise. Needs an organization key.`,
    }),
    resources: Type.Optional({
      ...ResourceChanges,
      description: `${ResourceChanges.description ?? ''} Needs an organization key.`.trimStart(),
    }),
    egress: Type.Optional(Nullable({ ...NewEgress, description: egressDescription })),
    budgets: Type.Optional({ ...NewBudgets, description: `${NewBudgets.description} Needs an organization key.` }),
  },
  {
    additionalProperties: false,
    ...namedExamples({
      'name and instructions': { name: 'my-assistant-v2', instructions: 'You are a helpful coding assistant.' },
      'one label set, one removed': { metadata: { plan: 'pro', trial: null } },
      'OpenClaw settings': { openclaw_config: { 'agents.defaults.thinkingDefault': 'high' } },
      'an allow-list': { egress: { mode: 'allowlist', hosts: ['api.example.com', '*.example.org'] } },
      budgets: { budgets: [{ name: 'daily', limit: { tokens: 1_000_000 }, per: 'day', time_zone: 'Europe/Berlin' }] },
    }),
  },
)

export const ListInstances = Type.Object(
  {
    ...PageQuery.properties,
    limit: { ...PageQuery.properties.limit, default: PageQuery.properties.limit.maximum },
    status: Type.Optional(
      Type.Array(OneOf(instanceStatuses), {
        minItems: 1,
        maxItems: instanceStatuses.length,
        description:
          'Only instances with this status, or with one of several: `status=running&status=error`. Terminated ' +
          'instances are listed only by this, for 30 days.',
      }),
    ),
    external_id: Type.Optional({ ...ExternalId, description: 'Only the instance with this external id.' }),
    metadata: Type.Optional({
      ...Metadata,
      minProperties: 1,
      description: 'Only instances with these labels: `metadata[customer]=cust-42`. Several must all match.',
    }),
    region: Type.Optional({ ...RegionName, description: 'Only instances in this region.' }),
    name: Type.Optional({
      ...Name,
      description: 'Only instances with this text in their name, in upper or lower case.',
    }),
  },
  { additionalProperties: false },
)

/** For calls that answer at once unless the caller wants to wait. */
export const WaitQuery = Type.Object(
  {
    wait: Type.Integer({
      minimum: 0,
      maximum: 60,
      default: 0,
      description:
        'How many seconds to wait at most until the agent runs, or cannot; `status` in the response tells which.',
    }),
  },
  { additionalProperties: false },
)

export const WaitForStatus = Type.Object(
  {
    wait: Type.Optional(
      OneOf(
        waitTargets,
        'Respond only once the instance has this status and the work for it is done, or once it cannot reach the ' +
          'status without another call; at the latest after `timeout` seconds. `settled`: once no work is left, ' +
          'whatever the status.',
      ),
    ),
    timeout: Type.Integer({
      minimum: 0,
      maximum: 60,
      default: 60,
      description: 'The longest time to wait, in seconds.',
    }),
  },
  { additionalProperties: false },
)
