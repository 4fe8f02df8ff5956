import { inArray, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type Instance, instances } from '#database/schema.ts'
import { isSettled, publicStatus } from '#instances/status.ts'
import { isId } from '#platform/ids.ts'
import { type Check, type DoctorDeps, type Finding, inWords, pageSize } from './finding.ts'
import { makeDue } from './repairs.ts'

/** For one call of the platform; an end of a sandbox takes longest. */
const callTimeoutMs = 60_000
/** Sandboxes looked at side by side. */
const lanes = 16

const within = (signal: AbortSignal) => AbortSignal.any([signal, AbortSignal.timeout(callTimeoutMs)])

const unreachable = (what: string, error: unknown): Finding => ({
  check: 'platform',
  what: `${what} ${inWords(error)}`,
  whatToDo: 'See that the platform of SANDBOX_DRIVER can be reached from here, and run it again.',
})

const findRows = async (db: Db, ids: readonly string[]): Promise<Map<string, Instance>> =>
  new Map((await db.select().from(instances).where(inArray(instances.id, ids))).map((row) => [row.id, row]))

async function* pagesOf<T>(items: AsyncIterable<T>): AsyncGenerator<T[]> {
  let page: T[] = []
  for await (const item of items) {
    page.push(item)
    if (page.length < pageSize) continue
    yield page
    page = []
  }
  if (page.length > 0) yield page
}

/** Looks for the row once more: one that is there now is a create that had just begun. */
const destroyOrphan =
  ({ db, sandboxes }: DoctorDeps, id: string, signal: AbortSignal) =>
  async () => {
    if (isId(id) && (await findRows(db, [id])).size > 0) return null
    await sandboxes.destroy(id, within(signal))
    return `the sandbox ${id}, which had no instance, is destroyed`
  }

const dueAgain = (db: Db, row: Instance, reason: string) => async () =>
  (await makeDue(db, row, reason)) ? `${row.id} is due again: a worker makes its sandbox as it should be` : null

/** I1: every sandbox has a row that wants it. */
export const sandboxesAgainstRows: Check = async function* (deps, signal) {
  const { db, sandboxes } = deps
  try {
    for await (const page of pagesOf(sandboxes.list(signal))) {
      const rows = await findRows(db, page.map(({ id }) => id).filter(isId))
      for (const { id, state } of page) {
        const row = rows.get(id)
        if (!row) {
          yield {
            check: 'I1',
            what: `The sandbox ${id} has no instance.`,
            whatToDo:
              'With --fix it is destroyed with its files. If another Chowder made it, keep the two apart first.',
            fix: destroyOrphan(deps, id, signal),
          }
          continue
        }
        if (!isSettled(row)) continue
        const status = publicStatus(row)
        if (status !== 'terminated' && (status === 'running' || state !== 'running')) continue
        const what = `The sandbox of ${id} is ${state}, and the instance is ${status}.`
        yield {
          check: 'I1',
          what,
          whatToDo: 'A worker finds it within seconds: see that one runs. With --fix the row is due again.',
          seen: row.generation,
          fix: dueAgain(db, row, 'The doctor found a sandbox left over.'),
        }
      }
    }
  } catch (error) {
    yield unreachable('The sandboxes cannot be listed.', error)
  }
}

/** I1: what counts as running and at rest does run. */
export const rowsAgainstSandboxes: Check = async function* ({ db, sandboxes }, signal) {
  for (let after = '00000000-0000-0000-0000-000000000000'; ; ) {
    const rows = await db
      .select()
      .from(instances)
      .where(
        sql`id > ${after} AND sandbox_driver = ${sandboxes.name} AND desired_state = 'running' AND ready_at IS NOT NULL
          AND observed_generation = generation`,
      )
      .orderBy(instances.id)
      .limit(lanes)
    const looks = await Promise.all(
      rows.map(async (row) => {
        try {
          return { row, state: (await sandboxes.observe(row.id, within(signal))).state }
        } catch (error) {
          return { row, error }
        }
      }),
    )
    for (const { row, state, error } of looks) {
      if (error !== undefined) yield unreachable(`The sandbox of ${row.id} cannot be looked at.`, error)
      if (error !== undefined || state === 'running') continue
      yield {
        check: 'I1',
        what: `The instance ${row.id} counts as running, and its sandbox is ${state}.`,
        whatToDo: 'A worker finds it within seconds: see that one runs. With --fix the row is due again.',
        seen: row.generation,
        fix: dueAgain(db, row, 'The doctor found that its sandbox does not run.'),
      }
    }
    const last = rows.at(-1)
    if (!last || rows.length < lanes) return
    after = last.id
  }
}

/** I1: no process of an agent runs outside a running sandbox. */
export const orphanProcesses: Check = async function* ({ sandboxes }, signal) {
  if (!sandboxes.orphans) return
  try {
    for (const stray of await sandboxes.orphans(within(signal))) {
      yield {
        check: 'I1',
        what: `${stray.what}: ${stray.pids.length} processes run there.`,
        whatToDo: `Look at them (ps -p ${stray.pids.slice(0, 10).join(',')}) and end them with kill.`,
        seen: stray.pids.join(','),
      }
    }
  } catch (error) {
    yield unreachable('The processes of agents cannot be looked at.', error)
  }
}
