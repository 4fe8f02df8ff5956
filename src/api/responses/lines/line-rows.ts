import { batched } from '#database/batched.ts'
import type { Db } from '#database/client.ts'
import type { Knowledge } from './processes.ts'

/** Turns of a session that may be in line, the running one included. The clients of all of them are connected. */
export const maxTurnsInLine = 100
/** A process that has not reported itself for this time is lost, and its turns do not count any more. */
const lostAfterSeconds = 5
/** Longer than any turn, its wait included: a line that no turn has entered since then has only lost ones. */
const staleAfter = `interval '1 hour'`

/** The session of a line. */
export interface LineKey {
  instanceId: string
  sessionKey: string
}

/** The turns of a session in their order. The first one runs. */
export interface Line extends LineKey {
  turns: string[]
}

/** A turn that enters or leaves a line. Null enters nothing: the line only loses its lost turns. */
export interface Place extends LineKey {
  id: string | null
}

export const keyOf = ({ instanceId, sessionKey }: LineKey): string => `${instanceId} ${sessionKey}`

/** Whether the process of a turn, an expression of SQL, has reported itself lately. */
const isLive = (turn: string) => `EXISTS (SELECT FROM processes p WHERE p.id = split_part(${turn}, ' ', 1)::uuid
  AND p.is_alone IS NOT NULL AND p.seen_at > now() - interval '${lostAfterSeconds} seconds')`

const columns = `instance_id AS "instanceId", session_key AS "sessionKey", line.turns`

/** Reads before it writes: the others that it returns are those of before. */
const reportQuery = `
  WITH reported AS (
    INSERT INTO processes (id, is_alone) VALUES ($1, $2)
    ON CONFLICT (id) DO UPDATE SET seen_at = now(), is_alone = excluded.is_alone)
  SELECT is_alone AS "isAlone" FROM processes
  WHERE id <> $1 AND is_alone IS NOT NULL AND seen_at > now() - interval '${lostAfterSeconds} seconds'`

// The turns of the own process count in any case.
const enterQuery = `
  INSERT INTO turn_lines AS line (instance_id, session_key, turns)
  SELECT x.instance, x.session, (ARRAY(SELECT jsonb_array_elements_text(x.turns)))[1:${maxTurnsInLine}]
  FROM unnest($2::uuid[], $3::text[], $4::jsonb[]) AS x (instance, session, turns)
  ON CONFLICT (instance_id, session_key) DO UPDATE SET entered_at = now(), turns = (ARRAY(
    SELECT turn FROM unnest(line.turns) WITH ORDINALITY AS earlier (turn, number)
    WHERE starts_with(turn, $1::text) OR ${isLive('turn')} ORDER BY number) || excluded.turns)[1:${maxTurnsInLine}]
  RETURNING ${columns}`

/** The turns of a line without those that leave it. */
const leaving = `(SELECT jsonb_array_elements_text(x.turns))`
const ofLine = 'line.instance_id = x.instance AND line.session_key = x.session'
const input = 'unnest($1::uuid[], $2::text[], $3::jsonb[]) AS x (instance, session, turns)'

const endQuery = `
  DELETE FROM turn_lines line USING ${input}
  WHERE ${ofLine} AND line.turns <@ ARRAY${leaving} RETURNING ${columns}`

const leaveQuery = `
  UPDATE turn_lines line SET turns = ARRAY(
    SELECT turn FROM unnest(line.turns) WITH ORDINALITY AS earlier (turn, number)
    WHERE turn NOT IN ${leaving} ORDER BY number)
  FROM ${input} WHERE ${ofLine} RETURNING ${columns}`

const lookQuery = `
  SELECT ${columns}, NOT ${isLive('line.turns[1]')} AS "isLost"
  FROM turn_lines line JOIN unnest($1::uuid[], $2::text[]) AS x (instance, session) ON ${ofLine}`

/** The values of `unnest`, a row for each line, in an order in which all processes lock the rows. */
function byLine(places: readonly Place[]): [string[], string[], string[]] {
  const lines = new Map<string, { key: LineKey; turns: string[] }>()
  for (const { id, ...key } of places) {
    const line = lines.get(keyOf(key)) ?? { key, turns: [] }
    if (id !== null) line.turns.push(id)
    lines.set(keyOf(key), line)
  }
  const sorted = [...lines].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, line]) => line)
  return [
    sorted.map(({ key }) => key.instanceId),
    sorted.map(({ key }) => key.sessionKey),
    sorted.map(({ turns }) => JSON.stringify(turns)),
  ]
}

const indexed = (lines: readonly Line[]) => new Map(lines.map((line) => [keyOf(line), line]))

/** The rows of lines, as one process reads and writes them. Calls that come at the same time share a statement. */
export function createLineRows(db: Db, processId: string) {
  const query = async (name: string, text: string, values: unknown[]) =>
    (await db.$client.query<Line>({ name, text, values })).rows

  return {
    /** Puts a turn at the end of its line. The line that is returned lacks it when the line is full. */
    enter: batched(1, async (places: readonly Place[]) => {
      const lines = indexed(await query('enter_lines', enterQuery, [processId, ...byLine(places)]))
      return places.map((place) => lines.get(keyOf(place))?.turns ?? [])
    }),
    /** Takes a turn out of its line, and returns the turns that remain. */
    leave: batched(1, async (places: readonly Place[]) => {
      const ended = indexed(await query('end_lines', endQuery, byLine(places)))
      const others = places.filter((place) => !ended.has(keyOf(place)))
      const lines = others.length === 0 ? null : indexed(await query('leave_lines', leaveQuery, byLine(others)))
      return places.map((place) => lines?.get(keyOf(place))?.turns ?? [])
    }),
    /** Reads lines. A line whose first turn has lost its process `isLost`: `enter` removes such turns. */
    look: async (keys: readonly LineKey[]) => {
      const values = [keys.map(({ instanceId }) => instanceId), keys.map(({ sessionKey }) => sessionKey)]
      return (await db.$client.query<Line & { isLost: boolean }>({ name: 'look_lines', text: lookQuery, values })).rows
    },
    /** Reports this process. Returns what each other process had reported by then. */
    async report(knowledge: Knowledge): Promise<Knowledge[]> {
      const values = [processId, knowledge === 'alone']
      const { rows } = await db.$client.query<{ isAlone: boolean }>({
        name: 'report_process',
        text: reportQuery,
        values,
      })
      return rows.map(({ isAlone }) => (isAlone ? 'alone' : 'shared'))
    },
    /** Runs no turns any more: those of this process do not count from now on. */
    end: () => db.$client.query('UPDATE processes SET is_alone = NULL WHERE id = $1', [processId]),
  }
}

export type LineRows = ReturnType<typeof createLineRows>

/** Deletes what lost processes have left. */
export async function deleteStaleLines(db: Db): Promise<void> {
  await db.$client.query(`DELETE FROM turn_lines WHERE entered_at < now() - ${staleAfter}`)
}
