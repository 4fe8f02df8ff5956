import { asc, type SQL, sql } from 'drizzle-orm'
import { instances } from '#database/schema.ts'
import { regionOf } from '#instances/regions.ts'
import { isDue } from '#instances/status.ts'
import { alarmingAttempts } from '#lifecycle/attempt/failures.ts'
import { isFailingEnd } from '#lifecycle/queue/backlog.ts'
import { type Check, type DoctorDeps, maxFindings } from './finding.ts'

/** The sweep enqueues due rows every 5 s. */
const untakenMinutes = 5

const findDue = ({ db }: DoctorDeps, condition: SQL) =>
  db
    .select()
    .from(instances)
    .where(sql`${isDue} AND ${condition}`)
    .orderBy(asc(instances.nextAttemptAt))
    .limit(maxFindings)

/** Workers take due rows, which the sweep enqueues every few seconds. */
export const untakenRows: Check = async function* (deps) {
  const isUntaken = sql`greatest(lease_until, next_attempt_at) < now() - make_interval(mins => ${untakenMinutes})`
  for (const { id, desiredState, region, sandboxDriver } of await findDue(deps, isUntaken)) {
    const isKnown = regionOf(deps.regions, { region, sandboxDriver }) !== undefined
    const missing =
      region === null
        ? `Start a worker with SANDBOX_DRIVER=${sandboxDriver}: no other worker takes the instance.`
        : `Name the region ${region}, with the driver ${sandboxDriver}, in CHOWDER_CONFIG_FILE: no worker has it.`
    yield {
      area: 'instances',
      what: `The instance ${id} should be ${desiredState}, and no worker has taken it for ${untakenMinutes} min.`,
      whatToDo: isKnown
        ? `Check that a worker ${region === null ? '' : `of the region ${region} `}runs, and read its log.`
        : missing,
    }
  }
}

/** Instances that should stop or be deleted do so. */
export const failingEnds: Check = async function* (deps) {
  for (const { id, desiredState } of await findDue(deps, isFailingEnd)) {
    const intent = desiredState === 'terminated' ? 'delete' : 'stop'
    yield {
      area: 'instances',
      what: `The ${intent} of the instance ${id} has failed ${alarmingAttempts} times or more.`,
      whatToDo:
        'Find the cause in the log of the workers, under "step failed" with this id, and remove it. ' +
        `The ${intent} is tried again within 10 min.`,
    }
  }
}
