import { type ParseArgsOptionsConfig, parseArgs } from 'node:util'
import { StartupError } from '#errors/startup-error.ts'
import { closestWord } from './closest.ts'
import { commit, version } from './version.ts'

const common = { help: { type: 'boolean', short: 'h' }, version: { type: 'boolean', short: 'v' } } as const

/** The end of a sentence about an unknown word. */
export function didYouMean(word: string, known: readonly string[]): string {
  const meant = closestWord(word, known)
  return meant === undefined ? ` There is: ${known.join(', ')}.` : ` Did you mean ${meant}?`
}

/**
 * Parses the command line of a program. `--help` prints its usage, and `--version` its version; both end the process.
 * Throws StartupError with the option that is unknown or lacks its value.
 */
export function parseCommandLine<const Options extends ParseArgsOptionsConfig>(usage: string, options: Options) {
  const config = { options: { ...options, ...common }, allowPositionals: true } as const
  const { values } = parseArgs({ ...config, strict: false })
  if (values.help === true) endWith(usage)
  if (values.version === true) endWith(`Chowder ${version} (commit ${commit}), on Node.js ${process.versions.node}`)
  checkOptions(process.argv.slice(2), config.options)
  return parseArgs(config)
}

/** Throws StartupError with the option that is not `known`, lacks its value or must not have one. */
export function checkOptions(args: readonly string[], known: ParseArgsOptionsConfig): void {
  const config = { args: [...args], options: known, allowPositionals: true, strict: false, tokens: true } as const
  for (const token of parseArgs(config).tokens) {
    if (token.kind !== 'option') continue
    const option = known[token.name]
    const { rawName } = token
    if (!option) {
      const names = Object.keys(known).map((name) => `--${name}`)
      throw new StartupError(`There is no option ${rawName}.${didYouMean(rawName, names)}`)
    }
    if (option.type === 'string' && token.value === undefined)
      throw new StartupError(`${rawName} needs a value. Run it with --help to see which.`)
    if (option.type === 'boolean' && token.value !== undefined) throw new StartupError(`${rawName} takes no value.`)
  }
}

/** A text for a terminal: without control characters but line ends, since agents and callers wrote parts of it. */
export const printable = (text: string): string => text.replace(/(?!\n)\p{Cc}/gu, ' ')

function endWith(text: string): never {
  process.stdout.write(`${text}\n`)
  process.exit(0)
}
