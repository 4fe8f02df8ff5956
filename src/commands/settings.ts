import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { groups, type Setting } from '#settings/env.ts'

const root = join(import.meta.dirname, '..', '..')

const all = groups.flatMap(({ settings }) => Object.entries(settings))

function defaultOf({ default: value, defaultText }: Setting): string {
  if (defaultText !== undefined) return defaultText
  return value === undefined ? '–' : `\`${value}\``
}

const meaningOf = (name: string, { description, isSecret }: Setting): string =>
  isSecret ? `${description}; or \`${name}_FILE\`: the path of a file with it` : `${description}`

/** The tables of docs/settings.md: one for each group. */
const tables = groups
  .map(({ title, settings }) => {
    const rows = Object.entries(settings).map(
      ([name, setting]) => `| \`${name}\` | ${defaultOf(setting)} | ${meaningOf(name, setting)} |`,
    )
    return [`## ${title}`, '', '| Variable | Default | Meaning |', '|---|---|---|', ...rows, ''].join('\n')
  })
  .join('\n')

const exampleFile = groups
  .map(({ title, settings }) => {
    const lines = Object.entries(settings).map(
      ([name, { example, default: value }]) => `# ${name}=${example ?? value ?? ''}`,
    )
    return [`# ${title}`, ...lines, ''].join('\n')
  })
  .join('\n')

const composeLines = all.filter(([, { isSetByCompose }]) => !isSetByCompose).map(([name]) => `  ${name}:`)

/** Replaces the lines between the line that contains `begin` and the next one that contains `end`. */
function replaceBetween(text: string, begin: string, end: string, lines: string): string {
  const from = text.indexOf('\n', text.indexOf(begin)) + 1
  const to = text.lastIndexOf('\n', text.indexOf(end, from)) + 1
  if (from === 0 || to === 0) throw new Error(`no lines between ${begin} and ${end}`)
  return `${text.slice(0, from)}${lines}${text.slice(to)}`
}

const generated: Record<string, (text: string) => string> = {
  '.env.example': () =>
    `# Every variable is optional: \`npm start\` runs without any. docs/settings.md has the meaning of each.\n\n${exampleFile}`,
  'docs/settings.md': (text) => replaceBetween(text, '<!-- settings -->', '<!-- end -->', `\n${tables}\n`),
  'docker-compose.yml': (text) =>
    replaceBetween(text, 'x-settings: &settings', '# End of the settings', `${composeLines.join('\n')}\n`),
}

/** The files with generated settings, each with its current and its generated content. */
export const settingsFiles = (): { file: string; current: string; expected: string }[] =>
  Object.entries(generated).map(([file, generate]) => {
    const current = readFileSync(join(root, file), 'utf8')
    return { file, current, expected: generate(current) }
  })

if (import.meta.main) {
  for (const { file, expected } of settingsFiles()) writeFileSync(join(root, file), expected)
}
