import { Type } from '@sinclair/typebox'
import { DateTime, Nullable, OneOf } from '#platform/typebox.ts'

const fields = {
  id: Type.String({ description: 'The `session_id` that messages are sent to.' }),
  is_active: Type.Boolean({ description: 'Whether a turn is running.' }),
  total_tokens: Type.Integer({ description: 'The tokens of the model’s context that the last turn used.' }),
  updated_at: Nullable(DateTime('The time of the last change; null for a session without messages.')),
}

const example = { id: 'user-42', is_active: false, total_tokens: 27988, updated_at: '2026-02-14T16:00:09.379000+00:00' }

export const Session = Type.Object(fields, { $id: 'Session', examples: [example] })

const Message = Type.Object({
  role: OneOf(['user', 'assistant'], 'Who wrote it.'),
  content: Type.String({ description: 'The text, without calls of tools and their results.' }),
  created_at: Nullable(DateTime('When it was written; null if OpenClaw does not report it.')),
})

export const SessionHistory = Type.Object(
  { ...fields, messages: Type.Array(Message, { description: 'The oldest message of the page first.' }) },
  {
    $id: 'SessionHistory',
    examples: [
      {
        ...example,
        messages: [
          { role: 'user', content: 'Summarize the README for me.', created_at: '2026-02-14T16:00:02.561000+00:00' },
          { role: 'assistant', content: 'It says…', created_at: '2026-02-14T16:00:09.148000+00:00' },
        ],
      },
    ],
  },
)
