import { expect, test } from 'vitest'
import { limitSessions } from '#sandbox/container/files.ts'
import type { FilesSession } from '#sandbox/container/files-session.ts'
import { until } from '../../support/until.ts'

const signal = AbortSignal.timeout(10_000)

function sessions() {
  const open: FilesSession[] = []
  const sessionsOf = limitSessions(async (id) => {
    if (id === 'broken') throw new Error('no container')
    const { promise: over, resolve } = Promise.withResolvers<void>()
    const session = { over, end: () => resolve() } as FilesSession
    open.push(session)
    return session
  })
  return { open, sessionsOf }
}

test('a sandbox has at most 16 sessions, and the next call has one as soon as one of them ends', async () => {
  const { open, sessionsOf } = sessions()
  const calls = Array.from({ length: 17 }, () => sessionsOf('one')(signal))
  await Promise.all(calls.slice(0, 16))
  await sessionsOf('another')(signal)
  expect(open).toHaveLength(17)
  open[0]?.end()
  await calls[16]
  expect(open).toHaveLength(18)
})

test('a call that waits for a session ends with its signal, and a session that does not open leaves its place', async () => {
  const { open, sessionsOf } = sessions()
  for (let tries = 0; tries < 20; tries += 1) await expect(sessionsOf('broken')(signal)).rejects.toThrow('no container')
  await Promise.all(Array.from({ length: 16 }, () => sessionsOf('one')(signal)))
  const abort = new AbortController()
  const waiting = sessionsOf('one')(abort.signal)
  abort.abort(new Error('gone'))
  await expect(waiting).rejects.toThrow('gone')
  for (const session of open) session.end()
  await until('free sessions', async () => (await sessionsOf('one')(signal)) !== undefined)
})
