import { type Static, Type } from '@sinclair/typebox'
import { budgetModes, budgetPeriodNames, budgetScopes, unitsPerUsd } from '#database/budget-schema.ts'
import { DateTime, Nullable, OneOf, textRule } from '#platform/typebox.ts'

const maxBudgets = 10

const Limit = (description: string) =>
  Type.Object(
    {
      tokens: Type.Optional(
        Type.Integer({ minimum: 1, maximum: 1e15, description: 'Tokens: all that models read and write.' }),
      ),
      usd: Type.Optional(
        Type.Number({
          minimum: 1 / unitsPerUsd,
          maximum: 1e6,
          description: 'US dollars, by the list prices that the usage has too.',
        }),
      ),
      calls: Type.Optional(Type.Integer({ minimum: 1, maximum: 1e15, description: 'Calls of models.' })),
    },
    { additionalProperties: false, minProperties: 1, maxProperties: 1, description },
  )

const name = Type.String({
  maxLength: 64,
  ...textRule(
    '^[A-Za-z0-9][A-Za-z0-9._-]*$',
    'must be letters, digits and . _ - only, and begin with a letter or a digit',
  ),
  description: 'The name, once among the budgets of its owner. What is used stays with it when the limit changes.',
})
const limit = Limit('What models may use in each period: tokens, US dollars or calls.')
const per = OneOf(budgetPeriodNames, 'The period.')

const settings = {
  scope: {
    ...OneOf(
      budgetScopes,
      'The calls that count. `total`: all of them together. `end_user`: those of each end user apart, by the `user` of a ' +
        'turn or the `end_user` of its client token. `unattended`: those of each agent apart that no person has asked ' +
        'for, such as of cron and heartbeats; replaces the default of 200 calls an hour.',
    ),
    default: 'total' as const,
  },
  time_zone: Type.String({
    default: 'UTC',
    minLength: 1,
    maxLength: 64,
    description: 'Where hours, days and months begin: a name of the IANA database, such as `Europe/Berlin`.',
  }),
  mode: {
    ...OneOf(
      budgetModes,
      '`hard`: calls of models and turns are refused while the budget is used up. `warn`: only events say so.',
    ),
    default: 'hard' as const,
  },
  unpriced_price: Nullable(
    Type.Number({
      default: 20,
      minimum: 0,
      maximum: 1e6,
      description:
        'For a budget in US dollars: what a million tokens of a model without a known price count. With null a hard ' +
        'budget refuses such models.',
    }),
  ),
}

const optional = {
  scope: Type.Optional(Type.Unsafe<(typeof budgetScopes)[number]>(settings.scope)),
  time_zone: Type.Optional(settings.time_zone),
  mode: Type.Optional(Type.Unsafe<(typeof budgetModes)[number]>(settings.mode)),
  unpriced_price: Type.Optional(settings.unpriced_price),
}

const example = { name: 'daily', limit: { tokens: 1_000_000 }, per: 'day' as const }
const replaces =
  'Replaces all budgets; those that keep their name, scope, period, time zone and unit keep what is used.'

const NewBudget = Type.Object({ name, limit, per, ...optional }, { additionalProperties: false, examples: [example] })
export type NewBudget = Static<typeof NewBudget>

/** The budgets of an organization or an instance, as callers set them. */
export const NewBudgets = Type.Array(NewBudget, { maxItems: maxBudgets, description: replaces })

const states = ['ok', 'nearly_used_up', 'used_up'] as const

const counters = {
  used: Type.Number({
    description:
      'What calls have used in this period, in the unit of the limit; where end users or agents are counted apart, the ' +
      'most that one of them has used.',
  }),
  remaining: Type.Number({ description: 'What is left of the limit; 0 when more was used.' }),
  resets_at: DateTime('When the period ends: then nothing of the next one is used.'),
  state: OneOf(states, '`nearly_used_up` from 80 % on.'),
}

const Shown = {
  name,
  scope: OneOf(budgetScopes, settings.scope.description as string),
  limit,
  per,
  time_zone: Type.String({ description: settings.time_zone.description ?? '' }),
  mode: OneOf(budgetModes, settings.mode.description as string),
  unpriced_price: settings.unpriced_price,
  ...counters,
}

const shownExample = {
  ...example,
  scope: 'total' as const,
  time_zone: 'Europe/Berlin',
  mode: 'hard' as const,
  unpriced_price: 20,
  used: 812_004,
  remaining: 187_996,
  resets_at: '2026-02-15T00:00:00.000000+01:00',
  state: 'nearly_used_up' as const,
}

export const Budget = Type.Object(Shown, { $id: 'Budget', examples: [shownExample] })
export type ShownBudget = Static<typeof Budget>

/** The state of a budget from its used part. */
export const stateOf = (used: number, limitUnits: number): (typeof states)[number] =>
  used >= limitUnits ? 'used_up' : used >= limitUnits * 0.8 ? 'nearly_used_up' : 'ok'
