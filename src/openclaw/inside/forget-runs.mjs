// Runs in a sandbox before each start of its gateway, with the path of OpenClaw's state folder as its argument. Makes
// OpenClaw 2026.9.6 forget the runs that its last end interrupted. Otherwise it repeats interrupted turns, with all
// that their tools do, although they were reported as failed, and refuses the next message of their sessions meanwhile.
// It has no setting for that. Sessions and their messages stay. A run whose id ends with ":resume" is left to OpenClaw:
// somebody asked for it to go on.
//
// Failures are written to the gateway's output, and the gateway starts anyway: OpenClaw repairs broken databases.
import { existsSync, readdirSync } from 'node:fs'
import { DatabaseSync } from 'node:sqlite'

const state = process.argv.at(-1)
const timeout = 5000

function edit(path, change) {
  if (!existsSync(path)) return // a new agent has none yet
  try {
    using database = new DatabaseSync(path, { timeout })
    change(database)
  } catch (error) {
    console.error(`OpenClaw may continue what was interrupted, because that could not be ended: ${error.message}`)
  }
}

const isOfRun = (name) =>
  ['abortedLastRun', 'activeWriterRunId', 'lifecycleRunId', 'mainRestartRecovery', 'subagentRecovery'].includes(name) ||
  (name.startsWith('restartRecovery') && !name.startsWith('restartRecoveryTerminal'))

/**
 * The record of a session whose run has failed. OpenClaw does not repeat a run among the terminal ones, even if a chat
 * channel delivers its message again.
 */
function failed(record) {
  const { restartRecoveryDeliverySourceRunId: source, restartRecoveryTerminalRunIds: terminal = [] } = record
  return {
    ...Object.fromEntries(Object.entries(record).filter(([name]) => !isOfRun(name))),
    status: 'failed',
    ...(source !== undefined && { restartRecoveryTerminalRunIds: [...terminal, source] }),
  }
}

/** In one transaction, because OpenClaw does not start with an invalid row. */
function endRuns(database) {
  database.exec('BEGIN IMMEDIATE')
  const running = database.prepare("SELECT session_key, entry_json FROM session_nodes WHERE status = 'running'").all()
  const update = database.prepare("UPDATE session_nodes SET status = 'failed', entry_json = ? WHERE session_key = ?")
  // A trigger of OpenClaw invalidates each changed row.
  const validate = database.prepare('UPDATE session_nodes SET entry_valid = 1 WHERE session_key = ?')
  for (const { session_key, entry_json } of running) {
    const record = JSON.parse(entry_json)
    if (String(record.lifecycleRunId).endsWith(':resume')) continue
    update.run(JSON.stringify(failed(record)), session_key)
    validate.run(session_key)
  }
  database.exec('COMMIT')
}

const agents = `${state}/agents`
for (const agent of existsSync(agents) ? readdirSync(agents) : []) {
  edit(`${agents}/${agent}/agent/openclaw-agent.sqlite`, endRuns)
}
edit(`${state}/state/openclaw.sqlite`, (database) => {
  // After three unclean ends within five minutes OpenClaw starts no channel, because one of them may be the cause. It must
  // not count an end that somebody has asked for.
  if (!existsSync(`${state}/ended-by-itself`)) database.exec('DELETE FROM gateway_boot_lifecycle')
  // The end of a delegated run would make the delegating agent begin another one.
  database.exec('DELETE FROM subagent_runs')
})
