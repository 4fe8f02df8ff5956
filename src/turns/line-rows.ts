import { batched } from '#database/batched.ts'
import type { Db } from '#database/client.ts'
import { isProcessAlive } from '#database/processes.ts'

/** Turns of a session that may be in line, the running one included. The clients of all of them are connected. */
export const maxTurnsInLine = 100
/** Longer than any turn, its wait included: lines not entered since then are empty or hold only lost turns. */
const staleAfter = `interval '1 hour'`

/** The session of a line. */
export interface LineKey {
  instanceId: string
  sessionKey: string
}

/** The turns of a session in their order. The first one runs. */
interface Line extends LineKey {
  turns: string[]
}

/** A turn that enters or leaves a line. Null enters nothing: the line only loses its lost turns. */
export interface Place extends LineKey {
  id: string | null
}

export const keyOf = ({ instanceId, sessionKey }: LineKey): string => `${instanceId} ${sessionKey}`

/** Whether the process of a turn, an expression of SQL, is alive. */
const isLive = (turn: string) => isProcessAlive(`split_part(${turn}, ' ', 1)::uuid`)

const columns = `instance_id AS "instanceId", session_key AS "sessionKey", line.turns`
const input = 'unnest($1::uuid[], $2::text[], $3::jsonb[]) AS x (instance, session, turns)'
const inputTurns = 'SELECT jsonb_array_elements_text(x.turns)'
const isOfLine = 'line.instance_id = x.instance AND line.session_key = x.session'

// The turns of the own process, $4, count in any case.
const enterQuery = `
  INSERT INTO turn_lines AS line (instance_id, session_key, turns)
  SELECT x.instance, x.session, (ARRAY(${inputTurns}))[1:${maxTurnsInLine}] FROM ${input}
  ON CONFLICT (instance_id, session_key) DO UPDATE SET entered_at = now(), turns = (ARRAY(
    SELECT turn FROM unnest(line.turns) WITH ORDINALITY AS earlier (turn, number)
    WHERE starts_with(turn, $4::text) OR ${isLive('turn')} ORDER BY number) || excluded.turns)[1:${maxTurnsInLine}]
  RETURNING ${columns}`

const leaveQuery = `
  UPDATE turn_lines line SET turns = ARRAY(
    SELECT turn FROM unnest(line.turns) WITH ORDINALITY AS earlier (turn, number)
    WHERE turn NOT IN (${inputTurns}) ORDER BY number)
  FROM ${input} WHERE ${isOfLine} RETURNING ${columns}`

const readQuery = `
  SELECT ${columns}, NOT ${isLive('line.turns[1]')} AS "isLost"
  FROM turn_lines line JOIN unnest($1::uuid[], $2::text[]) AS x (instance, session) ON ${isOfLine}`

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

/** The rows of lines, as one process reads and writes them. Calls that come at the same time share a statement. */
export function createLineRows(db: Db, processId: string) {
  async function change(name: string, text: string, places: readonly Place[], ...more: string[]): Promise<string[][]> {
    const { rows } = await db.$client.query<Line>({ name, text, values: [...byLine(places), ...more] })
    const turns = new Map(rows.map((line) => [keyOf(line), line.turns]))
    return places.map((place) => turns.get(keyOf(place)) ?? [])
  }
  return {
    /** Puts a turn at the end of its line. The line that is returned lacks it when the line is full. */
    enter: batched(1, (places: readonly Place[]) => change('enter_lines', enterQuery, places, processId)),
    /** Takes a turn out of its line, and returns the turns that remain. */
    leave: batched(1, (places: readonly Place[]) => change('leave_lines', leaveQuery, places)),
    /** Reads lines. `isLost`: the process of the first turn is dead. `enter` removes such turns. */
    read: async (keys: readonly LineKey[]) => {
      const values = [keys.map(({ instanceId }) => instanceId), keys.map(({ sessionKey }) => sessionKey)]
      const query = { name: 'read_lines', text: readQuery, values }
      return (await db.$client.query<Line & { isLost: boolean }>(query)).rows
    },
  }
}

/** Deletes empty lines, and what lost processes have left. */
export async function deleteStaleLines(db: Db): Promise<void> {
  await db.$client.query(`DELETE FROM turn_lines WHERE entered_at < now() - ${staleAfter}`)
}
