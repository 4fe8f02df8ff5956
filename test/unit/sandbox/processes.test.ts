import { expect, test } from 'vitest'
import { inTurns, ofAllProcesses, readStat } from '#sandbox/local/processes.ts'

test('a walk of many processes leaves turns of the event loop to others', async () => {
  let turns = 0
  let isOver = false
  const count = () => {
    turns += 1
    if (!isOver) setImmediate(count)
  }
  setImmediate(count)
  const pids = Array.from({ length: 1000 }, (_, index) => index)
  expect(await inTurns(pids, (pid) => pid * 2)).toEqual(pids.map((pid) => pid * 2))
  isOver = true
  expect(turns).toBeGreaterThanOrEqual(10)
})

test('a walk of all processes finds those of this user, and leaves out what is null', async () => {
  const found = await ofAllProcesses((pid) => (pid === process.pid ? readStat(pid) : null))
  expect(found).toMatchObject([{ pid: process.pid, parent: process.ppid }])
})
