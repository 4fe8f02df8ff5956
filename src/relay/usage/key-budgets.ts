import pTimeout from 'p-timeout'
import { batched } from '#database/batched.ts'
import type { Db } from '#database/client.ts'
import { type GrantedBudget, grantedBudget } from '#relay/budget.ts'

/** While this many queries run, calls wait and share the next one. */
const maxConcurrentQueries = 2
const timeoutMs = 5000

/** The session of an instance, by the gateway's key. */
interface Session {
  instanceId: string
  session: string
}

const findKeyBudgets = `
  SELECT x.place::int - 1 AS place, ${grantedBudget} AS budget
  FROM unnest($1::uuid[], $2::text[]) WITH ORDINALITY AS x (instance_id, session, place)
  JOIN session_keys k ON k.instance_id = x.instance_id AND k.session = x.session
  JOIN budgets b ON b.owner_id = k.key_id AND b.scope = 'key' AND b.mode = 'hard'
  ORDER BY b.position`

/** Finds the hard budgets of the key that the last turn of a session came with. */
export type FindKeyBudgets = (of: Session) => Promise<readonly GrantedBudget[]>

export function createFindKeyBudgets(db: Db): FindKeyBudgets {
  const find = batched(maxConcurrentQueries, async (sessions: readonly Session[]) => {
    const values = [sessions.map(({ instanceId }) => instanceId), sessions.map(({ session }) => session)]
    const { rows } = await db.$client.query<{ place: number; budget: GrantedBudget }>({
      name: 'find_key_budgets',
      text: findKeyBudgets,
      values,
    })
    const found = sessions.map((): GrantedBudget[] => [])
    for (const { place, budget } of rows) found[place]?.push(budget)
    return found
  })
  return (of) => pTimeout(find(of), { milliseconds: timeoutMs })
}
