import { execFile } from 'node:child_process'
import { mkdir, mkdtempDisposable, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { expect, test } from 'vitest'

const program = fileURLToPath(import.meta.resolve('#openclaw/inside/forget-runs.mjs'))
const forgetRuns = (state: string) => promisify(execFile)(process.execPath, [program, state])

const agentDatabase = 'agents/main/agent/openclaw-agent.sqlite'
const stateDatabase = 'state/openclaw.sqlite'

async function stateFolder() {
  const folder = await mkdtempDisposable(join(tmpdir(), 'chowder-state-'))
  for (const path of ['agents/main/agent', 'agents/other', 'state']) {
    await mkdir(join(folder.path, path), { recursive: true })
  }
  return folder
}

const interrupted = {
  sessionId: 's-1',
  updatedAt: 1,
  status: 'running',
  abortedLastRun: true,
  lifecycleRunId: 'r-1',
  activeWriterRunId: 'r-1',
  mainRestartRecovery: { cycleId: 'c', revision: 2, chargedAttempts: 1 },
  restartRecoveryRuns: [{ runId: 'r-1', lifecycleGeneration: 'g' }],
  restartRecoveryDeliveryRunId: 'r-1',
  restartRecoveryDeliverySourceRunId: 'telegram-7',
  restartRecoveryTerminalRunIds: ['telegram-6'],
}

test('runs that were interrupted have failed, and other sessions stay as they are', async () => {
  await using folder = await stateFolder()
  using database = new DatabaseSync(join(folder.path, agentDatabase))
  database.exec(`
    CREATE TABLE session_nodes (session_key TEXT, entry_json TEXT, status TEXT, entry_valid INTEGER DEFAULT 1);
    CREATE TRIGGER invalid AFTER UPDATE OF entry_json ON session_nodes BEGIN
      UPDATE session_nodes SET entry_valid = 0 WHERE session_key = NEW.session_key;
    END`)
  const insert = database.prepare('INSERT INTO session_nodes (session_key, entry_json, status) VALUES (?, ?, ?)')
  const idle = { sessionId: 's-2', status: 'done', lifecycleRunId: 'r-0' }
  insert.run('a', JSON.stringify(interrupted), 'running')
  insert.run('b', JSON.stringify(idle), 'done')
  await forgetRuns(folder.path)
  const rows = database.prepare('SELECT * FROM session_nodes ORDER BY session_key').all()
  expect(rows).toMatchObject([
    { status: 'failed', entry_valid: 1 },
    { status: 'done', entry_valid: 1 },
  ])
  expect(rows.map(({ entry_json }) => JSON.parse(String(entry_json)))).toEqual([
    {
      sessionId: 's-1',
      updatedAt: 1,
      status: 'failed',
      restartRecoveryTerminalRunIds: ['telegram-6', 'telegram-7'],
    },
    idle,
  ])
})

test('unclean ends and delegated runs are forgotten', async () => {
  await using folder = await stateFolder()
  using database = new DatabaseSync(join(folder.path, stateDatabase))
  for (const table of ['gateway_boot_lifecycle', 'subagent_runs']) {
    database.exec(`CREATE TABLE ${table} (id TEXT); INSERT INTO ${table} VALUES ('x')`)
  }
  await forgetRuns(folder.path)
  const counted = database.prepare(
    'SELECT (SELECT count(*) FROM gateway_boot_lifecycle) + (SELECT count(*) FROM subagent_runs) AS count',
  )
  expect(counted.get()).toEqual({ count: 0 })
})

test('unclean ends are kept after an end without a request for it', async () => {
  await using folder = await stateFolder()
  using database = new DatabaseSync(join(folder.path, stateDatabase))
  database.exec("CREATE TABLE gateway_boot_lifecycle (id TEXT); INSERT INTO gateway_boot_lifecycle VALUES ('x')")
  database.exec('CREATE TABLE subagent_runs (id TEXT)')
  await writeFile(join(folder.path, 'ended-by-itself'), '')
  await forgetRuns(folder.path)
  expect(database.prepare('SELECT count(*) AS count FROM gateway_boot_lifecycle').get()).toEqual({ count: 1 })
})

test('a new agent has nothing to forget, and broken databases keep none of the others from being changed', async () => {
  await using folder = await stateFolder()
  expect((await forgetRuns(folder.path)).stderr).toBe('')
  await writeFile(join(folder.path, agentDatabase), 'no database')
  using database = new DatabaseSync(join(folder.path, stateDatabase))
  database.exec("CREATE TABLE gateway_boot_lifecycle (id TEXT); INSERT INTO gateway_boot_lifecycle VALUES ('x')")
  const { stderr } = await forgetRuns(folder.path)
  expect(stderr).toContain('file is not a database')
  expect(stderr).not.toContain(folder.path)
  expect(database.prepare('SELECT count(*) AS count FROM gateway_boot_lifecycle').get()).toEqual({ count: 0 })
})
