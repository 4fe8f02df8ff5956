import { and, getTableColumns, gt, inArray, sql } from 'drizzle-orm'
import pMap from 'p-map'
import type { Db } from '#database/client.ts'
import { type Instance, instances } from '#database/schema.ts'
import { isIn } from '#instances/regions.ts'
import { isSettled, publicStatus } from '#instances/status.ts'
import { isId } from '#platform/ids.ts'
import { inPages } from '#platform/pages.ts'
import type { Listed } from '#sandbox/driver.ts'
import { describeError, type Finding, inEachRegion, lowestId, pageSize, type RegionDeps } from './finding.ts'
import { type Page, pagesOf, rowsOfAPart } from './part.ts'
import { makeDue } from './repairs.ts'

/** For one call of the platform; destroying a sandbox takes longest. */
const callTimeoutMs = 60_000
const concurrency = 16

const limited = (signal: AbortSignal) => AbortSignal.any([signal, AbortSignal.timeout(callTimeoutMs)])

const unreachable = (what: string, error: unknown): Finding => ({
  area: 'platform',
  what: `${what} ${describeError(error)}`,
  whatToDo: 'Check that the platform can be reached from here, and run the doctor again.',
})

const { id, generation, observedGeneration, desiredState, readyAt } = getTableColumns(instances)
const columns = { id, generation, observedGeneration, desiredState, readyAt }
type FoundRow = Pick<Instance, keyof typeof columns>

const findRows = async (db: Db, ids: readonly string[]): Promise<Map<string, FoundRow>> =>
  new Map((await db.select(columns).from(instances).where(inArray(instances.id, ids))).map((row) => [row.id, row]))

/** Looks for the row again: a create that was under way may have written it. */
const destroyOrphan =
  ({ db, sandboxes }: RegionDeps, id: string, signal: AbortSignal) =>
  async () => {
    if (isId(id) && (await findRows(db, [id])).size > 0) return null
    await sandboxes.destroy(id, limited(signal))
    return `the sandbox ${id}, which had no instance, is destroyed`
  }

const dueAgain = (db: Db, row: FoundRow, reason: string) => async () =>
  (await makeDue(db, row, reason)) ? `${row.id} is due again, and a worker corrects its sandbox` : null

const workerFindsIt = 'A worker finds this within seconds: check that one runs. With --fix the row is due again.'

/** What is not right about a sandbox and its row; undefined when nothing is. */
function sandboxFault(deps: RegionDeps, { id, state }: Listed, row: FoundRow | undefined, signal: AbortSignal) {
  if (!row) {
    return {
      what: `The sandbox ${id} has no instance.`,
      whatToDo: 'With --fix it is destroyed with its files. If it belongs to another Chowder, separate the two first.',
      fix: destroyOrphan(deps, id, signal),
    }
  }
  if (!isSettled(row)) return
  const status = publicStatus(row)
  if (status !== 'terminated' && (status === 'running' || state !== 'running')) return
  return {
    what: `The sandbox of ${id} is ${state}, and the instance is ${status}.`,
    whatToDo: workerFindsIt,
    version: row.generation,
    fix: dueAgain(deps.db, row, 'The doctor found a sandbox that should not exist or run.'),
  }
}

/** The instances of the region that should have a sandbox that runs in pages, all or a part of them. */
const shouldRun = (deps: RegionDeps): AsyncGenerator<Page & { found: FoundRow[] }> =>
  pagesOf(deps.part, `sandboxesAgainstRows.${deps.region}`, async function* (from) {
    const isHere = sql<boolean>`${and(isIn(deps), sql`observed_generation = generation`)}`
    for (let after = from?.[0] ?? lowestId; ; ) {
      const rows = await deps.db
        .select({ ...columns, isHere })
        .from(instances)
        .where(and(sql`desired_state = 'running' AND ready_at IS NOT NULL`, gt(instances.id, after)))
        .orderBy(instances.id)
        .limit(pageSize)
      const last = rows.at(-1)
      if (!last) return
      yield { rows: rows.length, last: [last.id], found: rows.filter((row) => row.isHere) }
      if (rows.length < pageSize) return
      after = last.id
    }
  })

/**
 * I1: every sandbox belongs to an instance that may have it, and every settled instance that is marked as running has a
 * sandbox that runs. The platform is asked for its list, and for each sandbox that should run and does not in the list.
 * A run of a part reads the beginning of the list alone.
 */
export const sandboxesAgainstRows = inEachRegion(async function* (deps, signal) {
  const { db, sandboxes, part } = deps
  const running = new Set<string>()
  let listed = 0
  try {
    for await (const page of inPages(sandboxes.list(signal), pageSize)) {
      listed += page.length
      if (part && listed > rowsOfAPart) {
        part.isCut = true
        break
      }
      const rows = await findRows(db, page.map(({ id }) => id).filter(isId))
      for (const sandbox of page) {
        if (sandbox.state === 'running') running.add(sandbox.id)
        const fault = sandboxFault(deps, sandbox, rows.get(sandbox.id), signal)
        if (fault) yield { area: 'sandboxes', ...fault }
      }
    }
  } catch (error) {
    yield unreachable('The sandboxes cannot be listed.', error)
    return
  }
  const observe = async (row: FoundRow) => {
    try {
      return { row, state: (await sandboxes.observe(row.id, limited(signal))).state }
    } catch (error) {
      return { row, error }
    }
  }
  for await (const { found } of shouldRun(deps)) {
    const missing = found.filter(({ id }) => !running.has(id))
    for (const { row, state, error } of await pMap(missing, observe, { concurrency })) {
      if (error !== undefined) yield unreachable(`The sandbox of ${row.id} cannot be observed.`, error)
      if (error !== undefined || state === 'running') continue
      yield {
        area: 'sandboxes',
        what: `The instance ${row.id} is marked as running, and its sandbox is ${state}.`,
        whatToDo: workerFindsIt,
        version: row.generation,
        fix: dueAgain(db, row, 'The doctor found that the sandbox does not run.'),
      }
    }
  }
})

/** I1: no process of an agent runs outside a running sandbox. */
export const orphanProcesses = inEachRegion(async function* ({ sandboxes }, signal) {
  if (!sandboxes.orphans) return
  try {
    for (const { what, pids } of await sandboxes.orphans(limited(signal))) {
      yield {
        area: 'sandboxes',
        what: `${what}, and ${pids.length} processes run in it.`,
        whatToDo: `Look at them (ps -p ${pids.slice(0, 10).join(',')}) and end them with kill.`,
        version: pids.join(','),
      }
    }
  } catch (error) {
    yield unreachable('The processes of agents cannot be listed.', error)
  }
})
