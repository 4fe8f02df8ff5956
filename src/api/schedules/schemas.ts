import { type Static, Type } from '@sinclair/typebox'
import { overlaps, runOutcomes } from '#database/schedule-schema.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { apiSessionId } from '#openclaw/gateway/session-key.ts'
import type { Vault } from '#platform/secrets.ts'
import { toMicroseconds } from '#platform/timestamps.ts'
import { DateTime, Nullable, OneOf, plainText, textRule, Uuid } from '#platform/typebox.ts'
import { type Schedule as Row, unsealInput } from '#schedules/store.ts'
import { nextTimes } from '#schedules/times.ts'

const maxInputLength = 100_000
const daySeconds = 24 * 60 * 60
const shownTimes = 5

// Accepts any text: a malformed id is unknown, a 404.
export const ScheduleParams = Type.Object({
  ...InstanceParams.properties,
  schedule_id: Uuid('The id of the schedule.'),
})

const field = '[0-9A-Za-z*,/#-]+'
const sent = {
  name: Type.String({ maxLength: 128, ...plainText, description: 'A name for people.' }),
  cron: Type.String({
    maxLength: 128,
    ...textRule(`^${field}( +${field}){4}$`, 'must be five fields of cron, such as 0 7 * * 1-5'),
    description: 'Minutes, hours, days, months and weekdays, such as `0 7 * * 1-5`: at 7 on working days.',
  }),
  time_zone: Type.String({
    minLength: 1,
    maxLength: 64,
    ...plainText,
    description: 'The zone of `cron`, such as `Europe/Berlin`.',
  }),
  at: Type.String({
    maxLength: 64,
    format: 'date-time',
    description: 'Runs once, at this time, in place of `cron`.',
  }),
  input: Type.String({ minLength: 1, maxLength: maxInputLength, description: 'The message to the agent.' }),
  session_id: Type.String({
    minLength: 1,
    maxLength: 200,
    description:
      'The session of its runs, which remembers the runs before. By default one of its own, `schedule-<id>`.',
  }),
  model: Type.String({
    minLength: 1,
    maxLength: 256,
    ...plainText,
    description: 'As in a response: `openclaw` for the model of the agent.',
  }),
  overlap: OneOf(
    overlaps,
    'While the run before goes on: `skip` leaves the next one out, `buffer_one` begins it afterwards, and ' +
      '`cancel_other` cancels the run before.',
  ),
  catch_up_seconds: Type.Integer({
    minimum: 10,
    maximum: 7 * daySeconds,
    description: 'How much too late it may begin, such as after an outage. Of several missed runs one begins at most.',
  }),
  jitter_seconds: Type.Integer({
    minimum: 0,
    maximum: 3600,
    description: 'It begins up to so much later, always as much, so that not all schedules begin at once.',
  }),
  pause_on_failures: Nullable(
    Type.Integer({ minimum: 1, maximum: 100, description: 'Pauses after so many failed runs in a row. null: never.' }),
  ),
  paused: Type.Boolean({ description: 'Whether it is paused. What is due meanwhile does not run afterwards.' }),
}

const optional = Type.Partial(Type.Object(sent)).properties

export const CreateSchedule = Type.Object(
  { ...optional, input: sent.input },
  {
    additionalProperties: false,
    examples: [{ cron: '0 7 * * 1-5', time_zone: 'Europe/Berlin', input: 'Summarize the news.' }],
  },
)

export const PatchSchedule = Type.Object(optional, {
  additionalProperties: false,
  minProperties: 1,
  examples: [{ paused: true }],
})

export const Schedule = Type.Object(
  {
    id: Uuid('The id of the schedule.'),
    instance_id: Uuid('The instance whose agent gets the message.'),
    name: Type.String({ description: 'A name for people.' }),
    cron: Nullable(Type.String({ description: 'When it runs; null for one that runs once.' })),
    time_zone: Type.String({ description: 'The zone of `cron`.' }),
    at: Nullable(DateTime('When it runs once; null for `cron`.')),
    input: Type.String({ description: 'The message to the agent.' }),
    session_id: Type.String({ description: 'The session of its runs.' }),
    model: Type.String({ description: 'The model of its runs.' }),
    overlap: OneOf(overlaps, 'What happens while the run before goes on.'),
    catch_up_seconds: Type.Integer({ description: 'How much too late it may begin.' }),
    jitter_seconds: Type.Integer({ description: 'The most that it begins later than its time.' }),
    pause_on_failures: Nullable(Type.Integer({ description: 'Failed runs in a row that pause it; null: none.' })),
    failures: Type.Integer({ description: 'The failed runs in a row, without the last run.' }),
    paused: Type.Boolean({ description: 'Whether it is paused.' }),
    paused_for: Nullable(OneOf(['owner', 'failures'], 'Who paused it: a call, or `pause_on_failures`.')),
    next_times: Type.Array(Type.String({ format: 'date-time' }), {
      description: 'Its next five times; none while it is paused, and after its only run.',
    }),
    runs: Type.Array(
      Type.Object({
        due_at: DateTime('When it was due.'),
        at: DateTime('When that was decided.'),
        outcome: OneOf(
          runOutcomes,
          '`started`: `response_id` has the turn. `skipped` and `failed`: nothing began; `reason` says why.',
        ),
        response_id: Nullable(Type.String({ description: 'The response of the run; null without one.' })),
        reason: Nullable(Type.String({ description: 'Why it was skipped or failed; null for a run that started.' })),
      }),
      { description: 'The last 20 runs, the newest first.' },
    ),
    created_at: DateTime('When the schedule was created.'),
  },
  {
    $id: 'Schedule',
    examples: [
      {
        id: '0199f7a2-5b1e-7c3d-9a4f-2e6b8d0c1f35',
        instance_id: '01939b6e-5b3c-7d2a-8f10-3c2f5a7b9d01',
        name: 'news',
        cron: '0 7 * * 1-5',
        time_zone: 'Europe/Berlin',
        at: null,
        input: 'Summarize the news.',
        session_id: 'schedule-0199f7a2-5b1e-7c3d-9a4f-2e6b8d0c1f35',
        model: 'openclaw',
        overlap: 'skip',
        catch_up_seconds: 3600,
        jitter_seconds: 0,
        pause_on_failures: null,
        failures: 0,
        paused: false,
        paused_for: null,
        next_times: ['2026-02-16T06:00:00.000000+00:00'],
        runs: [],
        created_at: '2026-02-14T16:00:00.000000+00:00',
      },
    ],
  },
)

/** The times after the next one are computed from it, so that they need no clock. */
function timesOf(row: Row): Date[] {
  if (row.nextAt === null) return []
  return [row.nextAt, ...nextTimes(row, row.nextAt, shownTimes - 1)]
}

export const toSchedule = (vault: Vault, row: Row): Static<typeof Schedule> => ({
  id: row.id,
  instance_id: row.instanceId,
  name: row.name,
  cron: row.cron,
  time_zone: row.timeZone,
  at: row.at && toMicroseconds(row.at),
  input: unsealInput(vault, row),
  session_id: apiSessionId(row.sessionKey),
  model: row.model,
  overlap: row.overlap,
  catch_up_seconds: row.catchUpSeconds,
  jitter_seconds: row.jitterSeconds,
  pause_on_failures: row.pauseOnFailures,
  failures: row.failures,
  paused: row.pausedFor !== null,
  paused_for: row.pausedFor,
  next_times: timesOf(row).map(toMicroseconds),
  runs: row.runs,
  created_at: toMicroseconds(row.createdAt),
})
