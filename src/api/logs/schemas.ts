import { type Static, Type } from '@sinclair/typebox'

const maxTail = 1000
export const defaultTail = 200

export const LogQuery = Type.Object(
  {
    tail: Type.Optional(
      Type.Integer({
        minimum: 0,
        maximum: maxTail,
        default: defaultTail,
        description: 'The number of lines from the end of the log, at most; of long lines fewer than 1 MiB.',
      }),
    ),
    follow: Type.Optional(
      Type.Boolean({ description: 'Whether to go on with new lines, as server-sent events, until you close.' }),
    ),
  },
  { additionalProperties: false },
)

export const Line = Type.Object(
  {
    text: Type.String({ description: 'The line, with `***` in place of secrets that this server knows.' }),
    truncated: Type.Boolean({ description: 'Whether the line is longer than 16 KiB, of which the rest is left out.' }),
  },
  {
    $id: 'LogLine',
    examples: [{ text: '2026-11-27T06:52:52.320+00:00 [gateway] http server listening', truncated: false }],
  },
)
export type Line = Static<typeof Line>

export const Events = Type.String({
  description:
    'With `follow=true`: an event `line` for each line, with a `LogLine` as its data. An event `gap` stands for ' +
    'lines that were deleted before they were read. The event `end` is the last one: its data has the `reason`. A ' +
    'comment is sent after 15 s without a line.',
  examples: ['event: line\ndata: {"text":"2026-11-27T06:52:52.320+00:00 [gateway] ready","truncated":false}\n\n'],
})
