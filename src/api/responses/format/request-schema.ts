import { type Static, Type } from '@sinclair/typebox'
import { closed } from '#http/client-schema.ts'
import { namedExamples } from '#http/examples.ts'
import { modelPattern } from '#openclaw/models/model.ts'
import { OneOf, textRule } from '#platform/typebox.ts'
import { FunctionName, InputItem, maxItems, maxParts, maxTools, OptionalOrNull } from './input-schema.ts'
import { TextFormatParam } from './text-format.ts'

/** Description of the field `model`. */
export const modelName = textRule(
  modelPattern,
  'must be the name of a model: at most 200 letters, digits and . _ : @ / + -, such as openclaw',
)

/** The JSON schema of a function's arguments. */
export const Parameters = Type.Record(Type.String(), Type.Unknown(), {
  description: 'The JSON schema of the arguments.',
})
export const FunctionDescription = Type.String({ description: 'What the function does, for the model.' })
export const Strict = Type.Boolean({ description: 'No effect: the agent does not make its model follow a schema.' })
export const AllowedMode = OneOf(['none', 'auto', 'required'], 'What the model may do with the allowed tools.')

const ToolParam = Type.Object({
  type: Type.String({ description: '`function`. The agent has its own tools besides.' }),
  name: Type.Optional(FunctionName),
  description: OptionalOrNull(FunctionDescription),
  parameters: OptionalOrNull(Parameters),
  strict: OptionalOrNull(Strict),
})

/** The description of the field `tool_choice`. */
export const toolChoiceDescription =
  'Which of your tools the model calls: `auto` as it likes, `none`, `required` at least one, or one function by name. ' +
  '`allowed_tools` offers only some of them.'

const ToolChoiceParam = Type.Union(
  [
    OneOf(['none', 'auto', 'required']),
    Type.Object({
      type: Type.String({ description: '`function` with its `name`, or `allowed_tools`.' }),
      name: Type.Optional(FunctionName),
      mode: Type.Optional(AllowedMode),
      tools: Type.Optional(
        Type.Array(
          Type.Object({
            type: Type.String({ description: '`function`.' }),
            name: Type.Optional(Type.String({ description: 'The name of one of `tools`.' })),
          }),
          { maxItems: maxTools, description: 'The allowed tools.' },
        ),
      ),
    }),
  ],
  { description: toolChoiceDescription },
)

export const Metadata = Type.Record(Type.String({ maxLength: 64 }), Type.String({ maxLength: 512 }), {
  maxProperties: 16,
  description: 'Your own labels, at most 16.',
})

/** Fields that a request of either format may have. */
export const sharedFields = {
  temperature: OptionalOrNull(
    Type.Number({
      minimum: 0,
      maximum: 2,
      description: 'How freely the model chooses. `temperature` of the model says whether it has an effect.',
    }),
  ),
  top_p: OptionalOrNull(
    Type.Number({
      minimum: 0,
      maximum: 1,
      description:
        'The share of the likeliest words that the model chooses from. `top_p` of the model says whether it has an effect.',
    }),
  ),
  presence_penalty: OptionalOrNull(Type.Number({ minimum: -2, maximum: 2, description: 'Only 0.' })),
  frequency_penalty: OptionalOrNull(Type.Number({ minimum: -2, maximum: 2, description: 'Only 0.' })),
  top_logprobs: OptionalOrNull(Type.Integer({ minimum: 0, maximum: 20, description: 'Only 0.' })),
  parallel_tool_calls: OptionalOrNull(Type.Boolean({ description: 'false is refused together with `tools`.' })),
  stream: OptionalOrNull(Type.Boolean({ description: 'Whether the answer comes as server-sent events.' })),
  service_tier: OptionalOrNull(Type.String({ description: 'No effect.' })),
  safety_identifier: OptionalOrNull(Type.String({ description: 'No effect.' })),
  prompt_cache_key: OptionalOrNull(Type.String({ description: 'No effect.' })),
  prompt_cache_retention: OptionalOrNull(Type.String({ description: 'No effect.' })),
  user: OptionalOrNull(
    Type.String({
      maxLength: 200,
      description:
        'Your own id of the end user, for usage and budgets; no effect with a client token, which has its own. Send each ' +
        'user’s messages in a session of their own.',
    }),
  ),
}
const Refused = Type.Optional(Type.Unknown({ description: 'Refused.' }))

/**
 * The body of `POST …/responses`. It names every field of the format, so that request.ts can refuse the ones without
 * support with a reason. docs/responses.md lists the treatment of each.
 */
export const CreateResponse = Type.Object(
  {
    model: Type.String({
      ...modelName,
      description:
        '`openclaw` for the model of the instance, or any model of its provider, as `<model>` or `<provider>/<model>`.',
    }),
    input: Type.Union([Type.String(), Type.Array(InputItem, { maxItems })], {
      description: 'Your message: a text, or a list of items.',
    }),
    ...sharedFields,
    instructions: OptionalOrNull(Type.String({ description: 'Added to the agent’s system prompt for this turn.' })),
    previous_response_id: OptionalOrNull(Type.String({ description: 'Must be the latest response of the session.' })),
    conversation: OptionalOrNull(
      Type.Union([Type.String(), Type.Object({ id: Type.String({ description: 'The id of the session.' }) })], {
        description: 'The session, as an id or as an object with it. It must be the one in the path, if that has one.',
      }),
    ),
    metadata: OptionalOrNull({ ...Metadata, description: 'Your own labels, which the response repeats.' }),
    store: OptionalOrNull(Type.Boolean({ description: 'Whether the response can be read later. True by default.' })),
    tools: OptionalOrNull(
      Type.Array(ToolParam, { maxItems: maxTools, description: 'Functions of yours that the model may call.' }),
    ),
    tool_choice: OptionalOrNull(ToolChoiceParam),
    max_output_tokens: OptionalOrNull(
      Type.Integer({ minimum: 16, description: 'The tokens of the answer, at most. Then it is `incomplete`.' }),
    ),
    text: OptionalOrNull(
      Type.Object(
        {
          format: OptionalOrNull(TextFormatParam),
          verbosity: OptionalOrNull(Type.String({ description: 'No effect.' })),
        },
        { description: 'How the text is written.' },
      ),
    ),
    reasoning: OptionalOrNull(Type.Object({}, { description: 'No effect.' })),
    truncation: OptionalOrNull(OneOf(['auto', 'disabled'], 'No effect: an agent shortens its conversation by itself.')),
    include: OptionalOrNull(
      Type.Array(Type.String(), {
        maxItems: maxParts,
        description:
          "`chowder.tools` adds events of the agent's own tools to a stream; `message.output_text.logprobs` is refused; " +
          'others have no effect.',
      }),
    ),
    stream_options: OptionalOrNull(
      Type.Object(
        { include_obfuscation: OptionalOrNull(Type.Boolean({ description: 'No effect: there is none.' })) },
        { description: 'No effect.' },
      ),
    ),
    background: OptionalOrNull(
      Type.Boolean({
        description:
          'Whether the turn goes on without a connection: the answer is the `queued` response, to be read later. ' +
          'Without `tools`, `tool_choice`, `max_output_tokens`, `temperature`, `top_p` and files, and for one message.',
      }),
    ),
    on_busy: OptionalOrNull(
      OneOf(
        ['queue', 'reject', 'interrupt'],
        'What happens while another turn of the session runs or waits: this one waits for it, the default; it is a ' +
          '429 `session_busy`; or the others are cancelled.',
      ),
    ),
    on_interrupted: OptionalOrNull(
      OneOf(
        ['fail', 'resume'],
        'For a background turn whose gateway dies: `fail`, the default, or `resume`, which makes the agent go on with it.',
      ),
    ),
    max_tool_calls: OptionalOrNull(Type.Integer({ minimum: 1, description: 'Refused.' })),
    context_management: Type.Optional(
      Type.Unknown({ description: 'No effect: an agent compacts its conversation by itself.' }),
    ),
    prompt: Refused,
  },
  {
    $id: 'CreateResponse',
    ...closed,
    description:
      'The Responses format. A field that the agent cannot honour is a 400 that names the field. Some hints ' +
      'are accepted without effect. docs/responses.md has the table of all fields.',
    ...namedExamples({
      plain: { model: 'openclaw', input: 'What files are in the current directory?' },
      stream: { model: 'openclaw', input: 'What files are in the current directory?', stream: true },
      image: {
        model: 'openclaw',
        input: [
          {
            type: 'message',
            role: 'user',
            content: [
              { type: 'input_text', text: 'What is in this picture?' },
              { type: 'input_image', image_url: 'https://example.com/picture.png' },
            ],
          },
        ],
      },
      tools: {
        model: 'openclaw',
        input: 'Where is order 4711?',
        tools: [
          {
            type: 'function',
            name: 'find_order',
            description: 'Tells where an order is.',
            parameters: { type: 'object', properties: { number: { type: 'string' } }, required: ['number'] },
          },
        ],
      },
      'answer as JSON': {
        model: 'openclaw',
        input: 'Where is order 4711?',
        text: {
          format: {
            type: 'json_schema',
            name: 'place',
            schema: { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] },
          },
        },
      },
      'result of a tool': {
        model: 'openclaw',
        input: [{ type: 'function_call_output', call_id: 'call_5f0c9a3e7b214d6f', output: '{"place": "Hamburg"}' }],
      },
    }),
  },
)
export type CreateResponse = Static<typeof CreateResponse>

/** Whether the events of the agent's own tools are asked for. */
export const includesTools = ({ include }: CreateResponse): boolean => include?.includes('chowder.tools') ?? false

/** The fields of the schema: request.ts refuses all others. */
export const responseFields: ReadonlySet<string> = new Set(Object.keys(CreateResponse.properties))
