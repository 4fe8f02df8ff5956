import { type Static, Type } from '@sinclair/typebox'
import { FunctionName, maxItems, maxParts, maxTools, OptionalOrNull } from '#api/responses/format/input-schema.ts'
import {
  AllowedMode,
  FunctionDescription,
  Metadata,
  modelName,
  Parameters,
  Strict,
  sharedFields,
  toolChoiceDescription,
} from '#api/responses/format/request-schema.ts'
import { schemaFields } from '#api/responses/format/text-format.ts'
import { closed } from '#http/client-schema.ts'
import { namedExamples } from '#http/examples.ts'
import { OneOf, Uri } from '#platform/typebox.ts'

const Part = Type.Object({
  type: Type.String({ description: '`text`, `image_url` or `file`.' }),
  text: Type.Optional(Type.String({ description: 'The text of a `text`.' })),
  refusal: Type.Optional(Type.String({ description: 'Text by which a model refused earlier.' })),
  image_url: Type.Optional(
    Type.Object(
      {
        url: Uri('A `data:` URL (PNG, JPEG, GIF, WebP, HEIC, HEIF) or an http(s) URL.'),
        detail: Type.Optional(Type.String({ description: 'No effect.' })),
      },
      { description: 'The image of an `image_url`, up to 10 MB.' },
    ),
  ),
  file: Type.Optional(
    Type.Object(
      {
        file_data: Type.Optional(
          Type.String({ description: 'A `data:` URL or bare base64 (text, Markdown, HTML, CSV, JSON, PDF).' }),
        ),
        filename: Type.Optional(Type.String({ description: 'The name of the file.' })),
        file_id: Type.Optional(Type.String({ description: 'Refused: there are no stored files.' })),
      },
      { description: 'The file of a `file`, up to 5 MB.' },
    ),
  ),
})
export type ChatPart = Static<typeof Part>

const ToolCall = Type.Object({
  id: Type.String({ minLength: 1, maxLength: 64, description: 'The id of the call.' }),
  type: Type.String({ description: '`function`.' }),
  function: Type.Optional(
    Type.Object(
      {
        name: Type.String({ description: 'The name of your function.' }),
        arguments: Type.String({ description: 'The arguments, as JSON.' }),
      },
      { description: 'The function that is called.' },
    ),
  ),
})

const ChatMessage = Type.Object({
  role: OneOf(
    ['system', 'developer', 'user', 'assistant', 'tool'],
    'Who wrote it. `system` and `developer` become part of the system prompt; `tool` is the result of a call.',
  ),
  content: OptionalOrNull(
    Type.Union([Type.String(), Type.Array(Part, { maxItems: maxParts })], {
      description: 'A text, or a list of parts.',
    }),
  ),
  name: OptionalOrNull(Type.String({ description: 'No effect.' })),
  refusal: OptionalOrNull(Type.String({ description: 'Text by which a model refused earlier.' })),
  tool_calls: OptionalOrNull(
    Type.Array(ToolCall, { maxItems: maxParts, description: 'The calls of an earlier answer.' }),
  ),
  tool_call_id: Type.Optional(
    Type.String({ minLength: 1, maxLength: 64, description: 'Of a `tool`: the id of the call that it answers.' }),
  ),
})
export type ChatMessage = Static<typeof ChatMessage>

const ChatTool = Type.Object({
  type: Type.String({ description: '`function`.' }),
  function: Type.Optional(
    Type.Object(
      {
        name: FunctionName,
        description: OptionalOrNull(FunctionDescription),
        parameters: OptionalOrNull(Parameters),
        strict: OptionalOrNull(Strict),
      },
      { description: 'A function of yours.' },
    ),
  ),
})

const ChosenFunction = Type.Object(
  { name: Type.Optional(Type.String({ description: 'The name of one of `tools`.' })) },
  { description: 'The function.' },
)
const ChatToolChoice = Type.Object({
  type: Type.String({ description: '`function` or `allowed_tools`.' }),
  function: Type.Optional(ChosenFunction),
  allowed_tools: Type.Optional(
    Type.Object(
      {
        mode: Type.Optional(AllowedMode),
        tools: Type.Optional(
          Type.Array(
            Type.Object({
              type: Type.String({ description: '`function`.' }),
              function: Type.Optional(ChosenFunction),
            }),
            { maxItems: maxTools, description: 'The allowed tools.' },
          ),
        ),
      },
      { description: 'The tools that the model gets.' },
    ),
  ),
})

const onlyNeutral = (value: string) => `Only ${value}.`
const Refused = Type.Optional(Type.Unknown({ description: 'Refused.' }))
const MaxTokens = OptionalOrNull(Type.Integer({ minimum: 1, description: 'The tokens of the answer, at most.' }))

const question = { role: 'user', content: 'What files are in the current directory?' }

/** The body of `POST …/chat/completions`. docs/responses.md lists the treatment of each field. */
export const CreateChatCompletion = Type.Object(
  {
    model: Type.String({
      ...modelName,
      description: '`openclaw` for the model of the instance, or any model of its provider.',
    }),
    messages: Type.Array(ChatMessage, {
      minItems: 1,
      maxItems,
      description: 'The whole conversation: the agent remembers no earlier call.',
    }),
    ...sharedFields,
    stream_options: OptionalOrNull(
      Type.Object(
        {
          include_usage: OptionalOrNull(Type.Boolean({ description: 'Whether the last chunk has the `usage`.' })),
          include_obfuscation: OptionalOrNull(Type.Boolean({ description: 'No effect: there is none.' })),
        },
        { description: 'What a stream has.' },
      ),
    ),
    tools: OptionalOrNull(
      Type.Array(ChatTool, { maxItems: maxTools, description: 'Functions of yours that the model may call.' }),
    ),
    tool_choice: OptionalOrNull(
      Type.Union([OneOf(['none', 'auto', 'required']), ChatToolChoice], { description: toolChoiceDescription }),
    ),
    max_completion_tokens: MaxTokens,
    max_tokens: MaxTokens,
    response_format: OptionalOrNull(
      Type.Object(
        {
          type: Type.String({ description: '`text`, `json_object`, or `json_schema` with the field of this name.' }),
          json_schema: OptionalOrNull(Type.Object(schemaFields, { description: 'The schema of the answer.' })),
        },
        { description: 'The format of the answer. JSON comes whole, once it is checked.' },
      ),
    ),
    n: OptionalOrNull(Type.Integer({ minimum: 1, description: onlyNeutral('1') })),
    stop: OptionalOrNull(
      Type.Union([Type.String(), Type.Array(Type.String(), { maxItems: maxParts })], { description: 'Refused.' }),
    ),
    logprobs: OptionalOrNull(Type.Boolean({ description: onlyNeutral('false') })),
    logit_bias: OptionalOrNull(Type.Record(Type.String(), Type.Number(), { description: 'Refused.' })),
    modalities: OptionalOrNull(
      Type.Array(Type.String(), { maxItems: maxParts, description: onlyNeutral('`["text"]`') }),
    ),
    audio: Refused,
    functions: Refused,
    function_call: Refused,
    web_search_options: Refused,
    metadata: OptionalOrNull({ ...Metadata, description: 'No effect.' }),
    store: OptionalOrNull(Type.Boolean({ description: 'No effect.' })),
    seed: OptionalOrNull(Type.Integer({ description: 'No effect.' })),
    reasoning_effort: OptionalOrNull(Type.String({ description: 'No effect.' })),
    verbosity: OptionalOrNull(Type.String({ description: 'No effect.' })),
    prediction: Type.Optional(Type.Unknown({ description: 'No effect.' })),
  },
  {
    $id: 'CreateChatCompletion',
    ...closed,
    description:
      'The Chat Completions format. A field that the agent cannot honour is a 400 that names the field. Some hints ' +
      'are accepted without effect. docs/responses.md has the table of all fields.',
    ...namedExamples({
      plain: { model: 'openclaw', messages: [question] },
      stream: { model: 'openclaw', messages: [question], stream: true },
      image: {
        model: 'openclaw',
        messages: [
          {
            role: 'user',
            content: [
              { type: 'text', text: 'What is in this picture?' },
              { type: 'image_url', image_url: { url: 'https://example.com/picture.png' } },
            ],
          },
        ],
      },
      tools: {
        model: 'openclaw',
        messages: [{ role: 'user', content: 'Where is order 4711?' }],
        tools: [
          {
            type: 'function',
            function: {
              name: 'find_order',
              description: 'Tells where an order is.',
              parameters: { type: 'object', properties: { number: { type: 'string' } }, required: ['number'] },
            },
          },
        ],
      },
    }),
  },
)
export type CreateChatCompletion = Static<typeof CreateChatCompletion>

/** The fields of the schema: request.ts refuses all others. */
export const chatFields: ReadonlySet<string> = new Set(Object.keys(CreateChatCompletion.properties))
