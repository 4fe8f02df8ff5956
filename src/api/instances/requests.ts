import { Type } from '@sinclair/typebox'
import { namedExamples } from '#http/examples.ts'
import { PageQuery } from '#http/paging.ts'
import { instanceStatuses, waitTargets } from '#instances/status.ts'
import { Name, OneOf } from '#platform/typebox.ts'
import { ExternalId, RegionName } from './fields.ts'
import { Metadata } from './labels.ts'
import { schemasOf } from './schemas.ts'

export const CreateInstance = Type.Object(
  {
    ...schemasOf('create'),
    if_exists: Type.Optional(
      OneOf(
        ['error', 'return'],
        'What to do when an instance has the `external_id` already: `error` answers 409 with its id, `return` ' +
          'answers 200 with the instance as it is, whatever the other fields say. `error` if left out.',
      ),
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

export const PatchInstance = Type.Object(schemasOf('patch'), {
  additionalProperties: false,
  ...namedExamples({
    'name and instructions': { name: 'my-assistant-v2', instructions: 'You are a helpful coding assistant.' },
    'one label set, one removed': { metadata: { plan: 'pro', trial: null } },
    'OpenClaw settings': { openclaw_config: { 'agents.defaults.thinkingDefault': 'high' } },
    'an allow-list': { egress: { mode: 'allowlist', hosts: ['api.example.com', '*.example.org'] } },
    budgets: { budgets: [{ name: 'daily', limit: { tokens: 1_000_000 }, per: 'day', time_zone: 'Europe/Berlin' }] },
  }),
})

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
      description:
        'Only instances with these labels: `metadata[customer]=cust-42` or `metadata.customer=cust-42`. Several must all match.',
    }),
    region: Type.Optional({ ...RegionName, description: 'Only instances in this region.' }),
    name: Type.Optional({
      ...Name,
      description: 'Only instances with this text in their name, in upper or lower case.',
    }),
  },
  { additionalProperties: false },
)

/** For calls that answer at once unless the caller asks to wait. */
export const WaitQuery = Type.Object(
  {
    wait: Type.Integer({
      minimum: 0,
      maximum: 60,
      default: 0,
      description:
        'How many seconds to wait at most until the agent runs, or cannot; `status` in the response says which.',
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
