import { installationId } from '#composition/installation.ts'
import { aliveProcesses } from '#database/processes.ts'
import { relayUrlFor } from '#instances/gateway/relay-url.ts'
import { installationAt } from '#relay/server.ts'
import { type Check, describeError, inEachRegion } from './finding.ts'

/** While processes with the relay run, it answers at the agents' address. */
export const relayAnswers: Check = async function* (deps, signal) {
  const { config, db } = deps
  const isApart = config.RELAY_ROLE === 'relay'
  const roles = isApart ? ['relay'] : ['all', 'worker']
  const alive = await aliveProcesses(db)
  if (!alive.some(({ role }) => roles.includes(role))) {
    // A missing worker is a finding of the queue.
    if (!isApart || alive.length === 0) return
    const whatToDo = 'Start one with npm start -- relay, or set RELAY_ROLE to worker for all processes.'
    yield { area: 'relay', what: 'No relay runs: agents cannot ask models.', whatToDo }
    return
  }
  yield* answersAgents(deps, signal)
}

const answersAgents = inEachRegion(async function* ({ db, sandboxes, relay }, signal) {
  try {
    const url = await relayUrlFor(sandboxes, relay, signal)
    const found = await installationAt(url)
    if (found === (await installationId(db))) return
    yield {
      area: 'relay',
      what: `At ${url}, where agents ask models, ${found === null ? 'nothing listens' : 'something else than the relay of this Chowder answers'}.`,
      whatToDo:
        'Give all processes, and the doctor, the same RELAY_PORT and RELAY_URL, and restart the agents after a change.',
    }
  } catch (error) {
    const what = `The address of the relay is not known. ${describeError(error)}`
    yield { area: 'relay', what, whatToDo: 'Check that the platform can be reached from here.' }
  }
})
