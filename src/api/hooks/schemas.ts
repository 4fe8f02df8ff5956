import { type Static, Type } from '@sinclair/typebox'
import { callOutcomes, hookKinds } from '#database/hook-schema.ts'
import { InstanceParams } from '#http/instance-params.ts'
import type { Vault } from '#platform/secrets.ts'
import { toMicroseconds } from '#platform/timestamps.ts'
import { DateTime, Nullable, OneOf, plainText, Uri, Uuid, visibleText } from '#platform/typebox.ts'
import { type Hook as Row, unsealInput } from './store.ts'

const maxInputLength = 20_000

// Both accept any text: a malformed id is unknown, a 404.
export const HookParams = Type.Object({ ...InstanceParams.properties, hook_id: Uuid('The id of the hook.') })
export const ReceiveParams = Type.Object({ hook_id: Uuid('The id of the hook.') })

const Kind = OneOf(
  hookKinds,
  'Who calls, and signs: `github`, `slack` (its Events API), or anyone by Standard Webhooks.',
)

const sent = {
  name: Type.String({ maxLength: 128, ...plainText, description: 'A name for people.' }),
  secret: Type.String({
    minLength: 8,
    maxLength: 256,
    ...visibleText,
    description:
      'What its calls are signed with: the signing secret of a Slack app, or one of yours. One is made if it is left out.',
  }),
  input: Type.String({
    minLength: 1,
    maxLength: maxInputLength,
    description:
      'The message to the agent. `{{body.issue.title}}` is a value of the call, `{{body}}` all of it as JSON, and ' +
      '`{{event}}` its type.',
  }),
  session_id: Type.String({
    minLength: 1,
    maxLength: 200,
    ...plainText,
    description:
      'The session of its turns, which may have values too, such as `issue-{{body.issue.number}}`. By default one of ' +
      'its own, `hook-<id>`.',
  }),
  model: Type.String({
    minLength: 1,
    maxLength: 256,
    ...plainText,
    description: 'As in a response: `openclaw` for the model of the agent.',
  }),
  paused: Type.Boolean({ description: 'Whether its calls begin nothing.' }),
}

const optional = Type.Partial(Type.Object(sent)).properties

export const CreateHook = Type.Object(
  { ...optional, kind: Kind, input: sent.input },
  {
    additionalProperties: false,
    examples: [
      { kind: 'github', input: 'Answer this issue: {{body.issue.title}}', session_id: 'issue-{{body.issue.number}}' },
    ],
  },
)

export const PatchHook = Type.Object(optional, {
  additionalProperties: false,
  minProperties: 1,
  examples: [{ paused: true }],
})

const fields = {
  id: Uuid('The id of the hook.'),
  instance_id: Uuid('The instance whose agent gets the messages.'),
  name: Type.String({ description: 'A name for people.' }),
  kind: Kind,
  url: Uri('The address to call.'),
  input: Type.String({ description: 'The template of the message.' }),
  session_id: Type.String({ description: 'The template of the session.' }),
  model: Type.String({ description: 'The model of its turns.' }),
  paused: Type.Boolean({ description: 'Whether its calls begin nothing.' }),
  calls: Type.Array(
    Type.Object({
      at: DateTime('When it came.'),
      delivery_id: Type.String({ description: 'The id that its sender gave it.' }),
      outcome: OneOf(
        callOutcomes,
        '`started`: `response_id` has the turn. `ignored` and `failed`: nothing began; `reason` says why.',
      ),
      response_id: Nullable(Type.String({ description: 'The response of the turn; null without one.' })),
      reason: Nullable(Type.String({ description: 'Why nothing began; null for a turn that started.' })),
    }),
    { description: 'The last 50 calls with a good signature, the newest first.' },
  ),
  created_at: DateTime('When the hook was created.'),
}

const example = {
  id: '0199f7a2-5b1e-7c3d-9a4f-2e6b8d0c1f35',
  instance_id: '01939b6e-5b3c-7d2a-8f10-3c2f5a7b9d01',
  name: 'issues',
  kind: 'github',
  url: 'https://chowder.example.com/v1/hooks/0199f7a2-5b1e-7c3d-9a4f-2e6b8d0c1f35',
  input: 'Answer this issue: {{body.issue.title}}',
  session_id: 'issue-{{body.issue.number}}',
  model: 'openclaw',
  paused: false,
  calls: [],
  created_at: '2026-02-14T16:00:00.000000+00:00',
}

export const Hook = Type.Object(fields, { $id: 'Hook', examples: [example] })

export const HookWithSecret = Type.Object(
  { ...fields, secret: Type.String({ description: 'The secret of its calls. It is in this answer only.' }) },
  { $id: 'HookWithSecret', examples: [{ ...example, secret: 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw…' }] },
)

export const Received = Type.Object(
  {
    response_id: Nullable(Type.String({ description: 'The response of the turn that began; null if none did.' })),
    challenge: Type.Optional(Type.String({ description: 'What Slack expects when the address is set up.' })),
  },
  { $id: 'HookReceived', examples: [{ response_id: 'resp_0199f7a25b1e7c3d9a4f2e6b8d0c1f35' }] },
)

export const toHook = (vault: Vault, publicUrl: string, row: Row): Static<typeof Hook> => ({
  id: row.id,
  instance_id: row.instanceId,
  name: row.name,
  kind: row.kind,
  url: `${publicUrl}/v1/hooks/${row.id}`,
  input: unsealInput(vault, row),
  session_id: row.session,
  model: row.model,
  paused: row.isPaused,
  calls: row.calls,
  created_at: toMicroseconds(row.createdAt),
})
