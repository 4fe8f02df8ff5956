import { parseArgs } from 'node:util'
import { runAs } from '#history/actor.ts'
import { checkOptions, didYouMean, printable } from '#platform/command-line.ts'
import type { Command, CommandDeps, Options } from './command.ts'
import { instanceCommands } from './instances.ts'
import { keyCommands } from './keys.ts'
import { organizationCommands } from './organizations.ts'
import { regionCommands } from './regions.ts'
import { secretKeyCommands } from './reseal.ts'
import { traceCommands } from './trace.ts'

const commands: Readonly<Record<string, Command>> = {
  ...organizationCommands,
  ...keyCommands,
  ...instanceCommands,
  ...regionCommands,
  ...traceCommands,
  ...secretKeyCommands,
}

const optionHelp: Record<Exclude<keyof Options, 'json'>, string> = {
  yes: '--yes',
  new: '--new',
  name: '--name <text>',
  tier: '--tier <tier>',
  org: '--org <org>',
  status: '--status <status>',
}

const callOf = (name: string, { parameters, options = [] }: Command): string =>
  [name, ...parameters, ...options.map((option) => `[${optionHelp[option as keyof typeof optionHelp]}]`)].join(' ')

const usage = `usage: npm run admin -- <command>
${Object.entries(commands)
  .map(([name, command]) => `  ${callOf(name, command)}\n      ${command.summary}`)
  .join('\n')}

  <org> and <instance> are an id, or a name that only one has.
  --json prints data for programs; --help prints this text, and the call of one command after its name.`

const optionTypes = {
  json: { type: 'boolean' },
  yes: { type: 'boolean' },
  new: { type: 'boolean' },
  help: { type: 'boolean' },
  name: { type: 'string' },
  tier: { type: 'string' },
  org: { type: 'string' },
  status: { type: 'string' },
} as const

/** Throws an Error for the operator, with the usage of the command, unless the words and options fit it. */
function check(name: string, command: Command, words: readonly string[], options: Options): void {
  const call = `usage: npm run admin -- ${callOf(name, command)}`
  const missing = command.parameters[words.length]
  if (missing) throw new Error(`${name} needs ${missing}.\n${call}`)
  const surplus = words[command.parameters.length]
  if (surplus !== undefined) throw new Error(`${name} does not take ${JSON.stringify(surplus)}.\n${call}`)
  const foreign = Object.keys(options).find(
    (option) => option !== 'json' && !command.options?.includes(option as keyof Options),
  )
  if (foreign) throw new Error(`${name} does not take --${foreign}.\n${call}`)
}

/** A parsed command line. */
export interface CommandLine {
  name: string
  words: readonly string[]
  options: Options
}

/**
 * Parses a command line; returns a text if only help is requested. Throws an Error for the operator with the fault of
 * an invalid command line.
 */
export function readCommandLine(args: readonly string[]): CommandLine | string {
  checkOptions(args, optionTypes)
  const { values, positionals } = parseArgs({ args: [...args], options: optionTypes, allowPositionals: true })
  const { help, ...options } = values
  const [name, ...words] = positionals
  if (name === undefined) {
    if (help) return usage
    throw new Error(usage)
  }
  const command = commands[name]
  if (!command)
    throw new Error(`There is no command ${JSON.stringify(name)}.${didYouMean(name, Object.keys(commands))}`)
  if (help) return `usage: npm run admin -- ${callOf(name, command)}\n  ${command.summary}`
  check(name, command, words, options)
  return { name, words, options }
}

/** Runs a command as the operator. Returns the text to print. Throws an Error for the operator. */
export async function administer(deps: CommandDeps, { name, words, options }: CommandLine): Promise<string> {
  const command = commands[name]
  if (!command) throw new Error(usage)
  const origin = { actor: { type: 'operator' } as const, ...(command.event && { type: command.event }) }
  const { text, data } = await runAs(origin, () => command.run({ ...deps, words, options }))
  return options.json ? JSON.stringify(data, null, 2) : printable(text)
}
