import { Script } from 'node:vm'
import { Ajv, type AnySchemaObject, type Options } from 'ajv'
import { Ajv2020 } from 'ajv/dist/2020.js'

/** Time, in ms, that one schema or answer may take. The usual ones take a few ms. */
const limitMs = 2000
const maxFaultCharacters = 500

const options: Options = {
  strict: false, // unknown keywords have no effect
  logger: false,
  validateSchema: false,
  validateFormats: false,
  inlineRefs: false, // copies of copies would grow without bound
  ownProperties: true,
  allErrors: true, // for the agent; code that stops at the first one is nested too deeply for a thousand properties
  code: { optimize: false }, // takes longer than the check
}
const drafts = [Ajv2020, Ajv] as const
type Draft = (typeof drafts)[number]

/** Judges schemas of each draft. They never compile one: a schema with an `$id` would stay for those of others. */
const judges = new Map(drafts.map((Draft) => [Draft, new Draft(options)]))
for (const judge of judges.values()) judge.validateSchema({}) // compiles the schema of schemas before the first task

const ids = new Map<unknown, Draft>([
  ['json-schema.org/draft/2020-12/schema', Ajv2020],
  ['json-schema.org/draft-07/schema', Ajv],
])

function draftOf(id: unknown): Draft {
  if (id === undefined) return Ajv2020
  const draft = ids.get(typeof id === 'string' ? id.replace(/^https?:\/\//, '').replace(/#$/, '') : id)
  if (!draft) throw new Error('$schema must be JSON Schema 2020-12 or draft-07')
  return draft
}

function compile({ $schema, ...schema }: AnySchemaObject) {
  const Draft = draftOf($schema)
  const judge = judges.get(Draft)
  if (judge?.validateSchema(schema) === false) throw new Error(judge.errorsText(judge.errors, { dataVar: 'schema' }))
  if (schema.$async !== undefined) throw new Error('$async is not supported')
  const ajv = new Draft({ ...options, meta: false })
  return { ajv, validate: ajv.compile(schema) }
}

class NotJson extends Error {}

/** The text between the first code fence and the last one. Without a pattern, which would take long for some texts. */
function fencedIn(answer: string): string {
  const begin = answer.indexOf('\n', answer.indexOf('```'))
  return answer.includes('```') ? answer.slice(begin + 1, answer.lastIndexOf('```')) : ''
}

/** Finds the JSON in an answer: agents put text before it, and code fences around it, in spite of all instructions. */
function jsonIn(answer: string): { text: string; value: unknown } {
  const atLine = answer.search(/^[[{]/m)
  for (const candidate of [answer, fencedIn(answer), atLine < 0 ? '' : answer.slice(atLine)]) {
    const text = candidate.trim()
    try {
      return { text, value: JSON.parse(text) }
    } catch {}
  }
  throw new NotJson()
}

const script = new Script('runTask()')

/** Runs a task, and throws when it takes too long. The limit also holds inside of a regular expression. */
function limited<T>(task: () => T): T {
  let result: T | undefined
  Object.assign(globalThis, {
    runTask: () => {
      result = task()
    },
  })
  script.runInThisContext({ timeout: limitMs })
  return result as T
}

const isTooCostly = (error: unknown) =>
  error instanceof RangeError ||
  (error instanceof Error && 'code' in error && error.code === 'ERR_SCRIPT_EXECUTION_TIMEOUT')

/** Returns what is wrong with a schema; null for a valid one. */
export function judge(schema: object): string | null {
  try {
    limited(() => compile(schema))
    return null
  } catch (error) {
    if (isTooCostly(error)) return 'is too complex'
    return `is not valid: ${(error as Error).message.slice(0, maxFaultCharacters)}`
  }
}

/** An answer that was checked: its JSON, or what is wrong with it. */
export type Checked = { text: string } | { fault: string } | { isTooCostly: true }

export function check({ schema, answer }: { schema: object; answer: string }): Checked {
  try {
    return limited(() => {
      const { text, value } = jsonIn(answer)
      const { ajv, validate } = compile(schema)
      if (validate(value)) return { text }
      return { fault: ajv.errorsText(validate.errors, { dataVar: 'answer' }).slice(0, maxFaultCharacters) }
    })
  } catch (error) {
    if (isTooCostly(error)) return { isTooCostly: true }
    if (error instanceof NotJson) return { fault: 'it is not JSON' }
    throw error
  }
}
