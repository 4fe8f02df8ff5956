import { type Static, Type } from '@sinclair/typebox'
import type { ModelProvider } from '#database/schema.ts'
import { defaultModel, type Model, type RetiredModel } from '#openclaw/models/models.ts'
import { Nullable } from '#platform/typebox.ts'

const describe = (description: string) => ({ description })

const Price = Type.Object(
  {
    input: Type.Number(describe('Tokens that the model reads.')),
    output: Type.Number(describe('Tokens that the model writes.')),
    cache_read: Nullable(Type.Number(describe('Tokens that the model reads from its cache.'))),
    cache_write: Nullable(Type.Number(describe('Tokens that the model writes into its cache.'))),
    as_of: Type.String({ format: 'date', ...describe('The day on which the source was read.') }),
    source: Type.String(describe('Where the price comes from.')),
  },
  describe(
    'The vendor’s list price in US dollars for a million tokens; null when it is unknown. What your vendor bills may ' +
      'differ.',
  ),
)

const identity = {
  id: Type.String(describe('The name for `model` of a turn and of an instance.')),
  object: Type.Literal('model', describe('Always `model`.')),
  created: Type.Integer(describe('When the instance was created, as Unix time in seconds; 0 for a model of a vendor.')),
  owned_by: Type.String(describe('`openclaw`, or the provider of the model: `anthropic`, `openai` or `gemini`.')),
}

const ListedModel = Type.Object(
  {
    ...identity,
    name: Type.String(describe('The vendor’s name for people.')),
    images: Type.Boolean(describe('Whether the model is shown images.')),
    context_window: Nullable(Type.Integer(describe('The tokens of a conversation that the model reads, at most.'))),
    max_output_tokens: Nullable(Type.Integer(describe('The tokens of one answer, at most.'))),
    thinking: Type.Boolean(describe('Whether the model can think before it answers.')),
    temperature: Type.Boolean(describe('Whether `temperature` has an effect.')),
    top_p: Type.Boolean(describe('Whether `top_p` has an effect.')),
    streams: Type.Boolean(
      describe('Whether a stream has its text as the model writes it. Otherwise all text comes at the end.'),
    ),
    default: Type.Boolean(describe('Whether instances of the provider use it unless they name another.')),
    price: Type.Unsafe<Static<typeof Price> | null>({ ...Price, type: ['object', 'null'] }),
    available: Type.Boolean(describe('Whether it can be used: it is not retired, and your organization has a key.')),
    retired_on: Nullable(
      Type.String({
        format: 'date',
        ...describe('The day on which the vendor shut the model down; null when it did not, or unknown.'),
      }),
    ),
    successor: Nullable(Type.String(describe('The model to use in the place of a retired one; null for all others.'))),
  },
  { $id: 'Model' },
)

type ListedModel = Static<typeof ListedModel>

/** A model of the table in the form of the API. */
export const toListedModel = (
  release: string,
  provider: ModelProvider,
  { id, name, price, ...abilities }: Model,
  hasKey: boolean,
): ListedModel => ({
  id,
  object: 'model',
  created: 0,
  owned_by: provider,
  name,
  ...abilities,
  default: id === defaultModel(release, provider),
  price,
  available: hasKey,
  retired_on: null,
  successor: null,
})

export const toRetiredModel = (provider: ModelProvider, { id, retired_on, successor }: RetiredModel): ListedModel => ({
  id,
  object: 'model',
  created: 0,
  owned_by: provider,
  name: id,
  images: false,
  context_window: null,
  max_output_tokens: null,
  thinking: false,
  temperature: false,
  top_p: false,
  streams: false,
  default: false,
  price: null,
  available: false,
  retired_on,
  successor,
})

const example: ListedModel = {
  id: 'claude-sonnet-4-6',
  object: 'model',
  created: 0,
  owned_by: 'anthropic',
  name: 'Claude Sonnet 4.6',
  images: true,
  context_window: 200_000,
  max_output_tokens: 128_000,
  thinking: true,
  temperature: false,
  top_p: false,
  streams: true,
  default: true,
  price: null,
  available: true,
  retired_on: null,
  successor: null,
}

export const ListedModels = Type.Object(
  {
    object: Type.Literal('list', describe('Always `list`.')),
    data: Type.Array(ListedModel, describe('The models, by provider.')),
  },
  { examples: [{ object: 'list', data: [example] }] },
)

export const InstanceModels = Type.Object(
  {
    object: Type.Literal('list', describe('Always `list`.')),
    data: Type.Array(
      Type.Union([Type.Object(identity, { additionalProperties: false }), ListedModel]),
      describe('`openclaw`, the model that it stands for, then the other models of the provider.'),
    ),
  },
  {
    examples: [
      {
        object: 'list',
        data: [{ id: 'openclaw', object: 'model', created: 1771066800, owned_by: 'openclaw' }, example],
      },
    ],
  },
)
