import { type Static, Type } from '@sinclair/typebox'
import { budgetFaults, budgetModes, budgetPeriodNames, unitsPerUsd } from '#database/budget-schema.ts'
import { DateTime, Nullable, OneOf, textRule } from '#http/validation.ts'

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
const limit = Limit('What models may use in each period: either tokens or US dollars.')
const per = OneOf(budgetPeriodNames, 'The period.')

const settings = {
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
  on_fault: {
    ...OneOf(
      budgetFaults,
      'What becomes of calls of models while a hard budget cannot be checked, as when the database is away: they are ' +
        'refused for that time, or allowed.',
    ),
    default: 'refuse' as const,
  },
}

const optional = {
  time_zone: Type.Optional(settings.time_zone),
  mode: Type.Optional(Type.Unsafe<(typeof budgetModes)[number]>(settings.mode)),
  unpriced_price: Type.Optional(settings.unpriced_price),
  on_fault: Type.Optional(Type.Unsafe<(typeof budgetFaults)[number]>(settings.on_fault)),
}

const selector = Type.Unsafe<Record<string, string>>({
  type: 'object',
  maxProperties: 16,
  propertyNames: { minLength: 1, maxLength: 64 },
  additionalProperties: { type: 'string', maxLength: 512 },
  description:
    'Only instances with these labels, which share the budget; several must all match. Empty, the default, is all ' +
    'instances.',
})

const example = { name: 'daily', limit: { tokens: 1_000_000 }, per: 'day' as const }
const listRules = { maxItems: maxBudgets }
const replaces = 'Replaces all budgets; those that keep their name, period, time zone and unit keep what is used.'

const NewBudget = Type.Object({ name, limit, per, ...optional }, { additionalProperties: false, examples: [example] })
const NewOrganizationBudget = Type.Object(
  { name, limit, per, ...optional, selector: Type.Optional(selector) },
  { additionalProperties: false, examples: [{ ...example, selector: { plan: 'free' } }] },
)

/** The budgets of an instance or a key, as callers set them. */
export const NewBudgets = Type.Array(NewBudget, { ...listRules, description: replaces })
export const NewOrganizationBudgets = Type.Array(NewOrganizationBudget, { ...listRules, description: replaces })

export type NewBudget = Static<typeof NewOrganizationBudget>

const states = ['ok', 'nearly_used_up', 'used_up'] as const

const counters = {
  used: Type.Number({ description: 'What calls have used in this period, in the unit of the limit.' }),
  reserved: Type.Number({ description: 'What is set aside for calls that run.' }),
  remaining: Type.Number({ description: 'What is left beside both; 0 when more was used than the limit.' }),
  resets_at: DateTime('When the period ends: then nothing of the next one is used.'),
  state: OneOf(states, '`nearly_used_up` from 80 % on.'),
}

const Shown = {
  name,
  limit,
  per,
  time_zone: Type.String({ description: settings.time_zone.description ?? '' }),
  mode: OneOf(budgetModes, settings.mode.description as string),
  unpriced_price: settings.unpriced_price,
  on_fault: OneOf(budgetFaults, settings.on_fault.description as string),
  ...counters,
}

const shownExample = {
  ...example,
  time_zone: 'Europe/Berlin',
  mode: 'hard' as const,
  unpriced_price: 20,
  on_fault: 'refuse' as const,
  used: 812_004,
  reserved: 0,
  remaining: 187_996,
  resets_at: '2026-02-15T00:00:00.000000+01:00',
  state: 'nearly_used_up' as const,
}

export const Budget = Type.Object(Shown, { $id: 'Budget', examples: [shownExample] })
export const OrganizationBudget = Type.Object(
  { ...Shown, selector },
  { $id: 'OrganizationBudget', examples: [{ ...shownExample, selector: { plan: 'free' } }] },
)
export type ShownBudget = Static<typeof OrganizationBudget>

/** The state of a budget of which a part of its limit is used. */
export const stateOf = (used: number, limitUnits: number): (typeof states)[number] =>
  used >= limitUnits ? 'used_up' : used >= limitUnits * 0.8 ? 'nearly_used_up' : 'ok'
