import { randomUUID } from 'node:crypto'
import pg from 'pg'
import { createDb } from '#database/client.ts'
import { beat, beatEveryMs } from '#database/processes.ts'
import { createTurnLines } from '#turns/line.ts'
import { defaultTurnTimeouts, Turn } from '#turns/turn.ts'
import { processFacts } from './process-facts.ts'

/** A process that takes the first place in the line of a session, says so, and keeps it until it is killed. */
process.once('message', async ({ connection, session }: HolderOptions) => {
  const db = createDb(new pg.Pool(connection))
  const id = randomUUID()
  const beatOnce = () => beat(db, processFacts(id))
  await beatOnce()
  setInterval(beatOnce, beatEveryMs)
  const lines = createTurnLines(db, id)
  const { begun } = await lines.enter(new Turn(defaultTurnTimeouts), session)
  await begun
  process.send?.('begun')
})

export interface HolderOptions {
  connection: pg.PoolConfig
  session: { instanceId: string; sessionKey: string }
}
