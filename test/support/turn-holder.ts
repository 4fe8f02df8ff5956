import { randomUUID } from 'node:crypto'
import pg from 'pg'
import { createTurnLines } from '#api/responses/lines/turn-lines.ts'
import { defaultTurnTimeouts, Turn } from '#api/responses/turns/turn.ts'
import { createDb } from '#database/client.ts'

/** A process that takes the first place in the line of a session, says so, and keeps it until it is killed. */
process.once('message', async ({ connection, session }: HolderOptions) => {
  const lines = createTurnLines(createDb(new pg.Pool(connection)), randomUUID())
  lines.open()
  const { begun } = await lines.enter(new Turn(defaultTurnTimeouts), session)
  await begun
  process.send?.('begun')
})

export interface HolderOptions {
  connection: pg.PoolConfig
  session: { instanceId: string; sessionKey: string }
}
