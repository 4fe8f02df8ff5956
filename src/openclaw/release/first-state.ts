import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'

/** The rows of OpenClaw's state database that are about the release and not about an agent, by table. */
const releaseRows: Readonly<Record<string, string>> = {
  schema_meta: 'true',
  config_machine_state: "state_key IN ('auth.sharedStore', 'plugins.bundledDiscovery', 'plugins.installedIndex')",
}

/**
 * Saves the state database of a stopped gateway, without all that identifies an agent, as the first state of new
 * agents: `first-state.mjs` reads it. The deleted rows are not in unused pages of the file either.
 */
export function saveFirstState(stateFolder: string, folder: string): void {
  using database = new DatabaseSync(join(stateFolder, 'state/openclaw.sqlite'))
  for (const { name } of database.prepare("SELECT name FROM sqlite_schema WHERE type = 'table'").all()) {
    database.exec(`DELETE FROM "${name}" WHERE NOT (${releaseRows[String(name)] ?? 'false'})`)
  }
  database.prepare('VACUUM INTO ?').run(join(folder, 'first-state.sqlite'))
}
