import type { Db } from '#database/client.ts'
import type { Tier } from '#database/schema.ts'
import type { EventType } from '#history/event-types.ts'
import type { RegionPlace } from '#instances/regions.ts'
import type { Vault } from '#platform/secrets.ts'

/** The result of a command: a text for people, and the same as data for `--json`. */
export interface Output {
  text: string
  data: unknown
}

export interface Options {
  json?: boolean
  yes?: boolean
  new?: boolean
  name?: string
  tier?: string
  org?: string
  status?: string
}

/** The parts for commands. */
export interface CommandDeps {
  db: Db
  /** The tier of a new organization. */
  defaultTier: Tier
  /** Whether only one organization is allowed. */
  isOneOrganization(): Promise<boolean>
  /** The regions, without their platforms. Throws an Error for the operator for a bad CHOWDER_CONFIG_FILE. */
  regions(): Promise<readonly RegionPlace[]>
  /** Opens the vault. Throws an Error for the operator when the key is missing or wrong. */
  vault(): Promise<Vault>
  /** Prints the progress of a long command. */
  report(line: string): void
  /** Asks the operator for an answer. Null if the input is not a terminal. */
  ask(question: string): Promise<string | null>
}

interface Call extends CommandDeps {
  /** The words after the name of the command: as many as `parameters`. */
  words: readonly string[]
  options: Options
}

export interface Command {
  /** The words after the name, as the usage shows them, such as `<org> <tier>`. */
  parameters: readonly string[]
  summary: string
  /** The names of its options besides `--json`. */
  options?: readonly (keyof Options)[]
  /** The type of its events; null if it changes nothing, or names the events itself. */
  event?: EventType
  /** Throws an Error for the operator: one line with the remedy. */
  run(call: Call): Promise<Output>
}

/** Rows under a line of headings, each column as wide as its widest text. */
export function table(headings: readonly string[], rows: readonly (readonly string[])[]): string {
  const lines = [headings, ...rows]
  const widths = headings.map((_, column) => Math.max(...lines.map((line) => line[column]?.length ?? 0)))
  return lines
    .map((line) => line.map((text, column) => text.padEnd(widths[column] ?? 0)).join('  '))
    .map((line) => line.trimEnd())
    .join('\n')
}

/** A time for people: to the second, in UTC. */
export const shortTime = (time: Date | null): string =>
  time
    ? time
        .toISOString()
        .replace('T', ' ')
        .replace(/\.\d+Z$/, 'Z')
    : '–'
