import { type Static, Type } from '@sinclair/typebox'
import { modelProviders } from '#database/schema.ts'
import { callCauses } from '#database/usage-schema.ts'
import { PageQuery } from '#http/paging.ts'
import { sessionIdOf } from '#openclaw/gateway/session-key.ts'
import { toMicroseconds } from '#platform/timestamps.ts'
import { DateTime, Nullable, OneOf, textRule, Uuid } from '#platform/typebox.ts'
import { type Group, groupNames, labelPrefix, type UsageRow } from './read.ts'

const maxGroups = 4

export const UsageQuery = Type.Object(
  {
    ...PageQuery.properties,
    from: Type.Optional(DateTime('Only calls that began then or later. By default 30 days before `to`.')),
    to: Type.Optional(DateTime('Only calls that began before. By default now. At most 400 days after `from`.')),
    bucket: Type.Optional(
      OneOf(
        ['hour', 'day', 'month'],
        'Separate items for each hour, day or month. By default one for all of the time.',
      ),
    ),
    time_zone: Type.String({
      default: 'UTC',
      minLength: 1,
      maxLength: 64,
      description: 'Where days and months begin: a name of the IANA database, such as `Europe/Berlin`.',
    }),
    group_by: Type.Optional(
      Type.Array(
        Type.String({
          maxLength: 80,
          ...textRule(
            `^(${groupNames.join('|')}|metadata\\.[^\\u0000]{1,64})$`,
            `must be ${groupNames.join(', ')}, or a label such as metadata.customer`,
          ),
        }),
        {
          minItems: 1,
          maxItems: maxGroups,
          uniqueItems: true,
          description:
            `Separate items for each of these: ${groupNames.map((name) => `\`${name}\``).join(', ')}, or a label of the ` +
            'instances, such as `metadata.customer`. Repeat the parameter for several.',
        },
      ),
    ),
    metadata: Type.Optional(
      Type.Unsafe<Record<string, string>>({
        type: 'object',
        minProperties: 1,
        maxProperties: 16,
        additionalProperties: { type: 'string', maxLength: 512 },
        description:
          'Only calls of instances with these labels: `metadata[customer]=cust-42` or `metadata.customer=cust-42`. Several must all match.',
      }),
    ),
  },
  { additionalProperties: false },
)
export type UsageQuery = Static<typeof UsageQuery>

const Count = (description: string) => Type.Integer({ minimum: 0, description })

export const Usage = Type.Object(
  {
    from: DateTime('The beginning of the time that the item is about.'),
    to: DateTime('Its end, which is not part of it.'),
    instance_id: Nullable(Uuid('The instance, with `group_by=instance`.')),
    session_id: Nullable(
      Type.String({
        description:
          'The session, with `group_by=session`; null for one of a channel or of OpenClaw itself, and where the agent ' +
          'did not report it.',
      }),
    ),
    session_key: Nullable(
      Type.String({ description: 'The gateway’s own name of the session, with `group_by=session`.' }),
    ),
    end_user: Nullable(
      Type.String({
        description: 'The `end_user` of the client token that the turn came with, with `group_by=end_user`.',
      }),
    ),
    model: Nullable(Type.String({ description: 'The model by its vendor’s name, with `group_by=model`.' })),
    provider: Nullable(OneOf(modelProviders, 'The vendor, with `group_by=provider`.')),
    cause: Nullable(
      OneOf(
        callCauses,
        'What the model was called for, with `group_by=cause`: a turn of the `api`, a message of a `channel`, a job of ' +
          '`cron`, or a `subagent`. Null if the agent does not report it, such as in the session `main` without a channel.',
      ),
    ),
    metadata: Type.Unsafe<Record<string, string | null>>({
      type: 'object',
      additionalProperties: { type: ['string', 'null'] },
      description: 'The labels that are grouped by, as the instances have them now.',
    }),
    calls: Count('Calls that a vendor has taken.'),
    cut_calls: Count('Those among them that ended before their answer did, with the tokens reported until then.'),
    lost_calls: Count('Those among them whose relay ended before they did: their tokens are unknown.'),
    calls_without_tokens: Count('Calls without reported tokens: those that are lost, and some of those cut.'),
    calls_without_price: Count('Calls with tokens of a model without a known price: `estimated_cost` lacks them.'),
    input_tokens: Count('All tokens that the models read, those of the cache included.'),
    cache_read_tokens: Count('Those among them that came from the cache.'),
    cache_write_tokens: Count('Those among them that were written into the cache.'),
    output_tokens: Count('All tokens that the models wrote, those of their reasoning included.'),
    reasoning_tokens: Count('Those among them that were reasoning, if the vendor reports them.'),
    estimated_cost: Type.Number({
      minimum: 0,
      description:
        'US dollars, by list prices at the time of each call. It is an estimate: your vendor may bill other prices, and ' +
        'searches and tools of its own beside tokens.',
    }),
  },
  {
    $id: 'Usage',
    examples: [
      {
        from: '2026-02-14T00:00:00.000000+00:00',
        to: '2026-02-15T00:00:00.000000+00:00',
        instance_id: '01939b6e-5b3c-7d2a-8f10-3c2f5a7b9d01',
        session_id: null,
        session_key: null,
        end_user: null,
        model: 'claude-sonnet-4-6',
        provider: null,
        cause: null,
        metadata: {},
        calls: 42,
        cut_calls: 1,
        lost_calls: 0,
        calls_without_tokens: 0,
        calls_without_price: 0,
        input_tokens: 1_203_114,
        cache_read_tokens: 1_100_902,
        cache_write_tokens: 61_004,
        output_tokens: 20_311,
        reasoning_tokens: 0,
        estimated_cost: 0.987,
      },
    ],
  },
)

/** An item for the values of the requested groups; null for all others. */
export function toUsage(row: UsageRow, groups: readonly Group[]): Static<typeof Usage> {
  const values = new Map(groups.map((group, index) => [group, row.keys[index] || null]))
  const shown = (group: Group) => values.get(group) ?? null
  const session = shown('session')
  const labels = groups.filter((group) => group.startsWith(labelPrefix))
  return {
    from: toMicroseconds(row.from),
    to: toMicroseconds(row.to),
    instance_id: shown('instance'),
    session_id: session === null ? null : sessionIdOf(`agent:main:${session}`),
    session_key: session,
    end_user: shown('end_user'),
    model: shown('model'),
    provider: shown('provider') as Static<typeof Usage>['provider'],
    cause: shown('cause') as Static<typeof Usage>['cause'],
    metadata: Object.fromEntries(labels.map((group) => [group.slice(labelPrefix.length), shown(group)])),
    ...row.sums,
  }
}
