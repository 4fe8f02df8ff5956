import { inArray } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { instances } from '#database/schema.ts'
import { isId } from '#platform/ids.ts'
import { inPages } from '#platform/pages.ts'
import { describeError, type Finding, inEachRegion } from './finding.ts'

const callTimeoutMs = 60_000
/** Sandboxes whose rows are read at a time. */
const pageSize = 250

const unreachable = (what: string, error: unknown): Finding => ({
  area: 'platform',
  what: `${what} ${describeError(error)}`,
  whatToDo: 'Check that the platform can be reached from here, and run the doctor again.',
})

async function existing(db: Db, ids: readonly string[]): Promise<Set<string>> {
  const rows = await db.select({ id: instances.id }).from(instances).where(inArray(instances.id, ids))
  return new Set(rows.map(({ id }) => id))
}

/** Every sandbox belongs to an instance. Workers find the sandboxes that differ from their rows. */
export const orphanSandboxes = inEachRegion(async function* ({ db, sandboxes }, signal) {
  const pages = inPages(sandboxes.list(signal), pageSize)
  for (;;) {
    let page: IteratorResult<{ id: string }[]>
    try {
      page = await pages.next()
    } catch (error) {
      yield unreachable('The sandboxes cannot be listed.', error)
      return
    }
    if (page.done) return
    // A row is written before its sandbox is created, so the rows are read after the list.
    const ids = page.value.map(({ id }) => id)
    const known = await existing(db, ids.filter(isId))
    for (const id of ids) {
      if (known.has(id)) continue
      yield {
        area: 'sandboxes',
        what: `The sandbox ${id} has no instance.`,
        whatToDo:
          'Remove it, with its files, by the commands of its platform. If it belongs to another Chowder, separate the two.',
      }
    }
  }
})

/** No process of an agent runs outside a running sandbox. */
export const orphanProcesses = inEachRegion(async function* ({ sandboxes }, signal) {
  if (!sandboxes.orphans) return
  try {
    for (const { what, pids } of await sandboxes.orphans(
      AbortSignal.any([signal, AbortSignal.timeout(callTimeoutMs)]),
    )) {
      yield {
        area: 'sandboxes',
        what: `${what}, and ${pids.length} processes run in it.`,
        whatToDo: `Look at them (ps -p ${pids.slice(0, 10).join(',')}) and end them with kill.`,
      }
    }
  } catch (error) {
    yield unreachable('The processes of agents cannot be listed.', error)
  }
})
