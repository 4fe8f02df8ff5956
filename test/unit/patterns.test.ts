import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createContext, runInContext } from 'node:vm'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { isObject } from '#openclaw/json.ts'
import { readDocument } from '../support/operations.ts'

const source = join(import.meta.dirname, '../../src')
const mostMs = 10
/** The longest text of a request: patterns are tested before lengths. */
const maxCharacters = 1024 * 1024
/** Long enough that a pattern that reads a text again for each character stands out, and quickly done. */
const sievedCharacters = 4096
/** By the clock, so much above what any pattern takes that a busy machine does not exceed it. */
const maxSieveMs = 3000
const samples = 3

/** The regular expressions in a source text that is formatted as this project's is. */
function literalsIn(text: string): string[] {
  const found: string[] = []
  const token =
    /\/\*[\s\S]*?\*\/|\/\/.*|'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"|`(?:[^`$\\]|\\.|\$\{[^`}]*\}|\$(?!\{))*`|([=(,:[!&|?{};>+]|return)\s*(\/(?![*/])(?:[^\\/[\n]|\\.|\[(?:[^\]\\\n]|\\.)*\])+\/[a-z]*)/g
  for (const [, , literal] of text.matchAll(token)) if (literal !== undefined) found.push(literal)
  return found
}

const files = readdirSync(source, { recursive: true, encoding: 'utf8' }).filter((path) => path.endsWith('.ts'))
const inCode = files.flatMap((file) =>
  literalsIn(readFileSync(join(source, file), 'utf8')).map((literal) => {
    const end = literal.lastIndexOf('/')
    return { name: `${file}: ${literal}`, regExp: new RegExp(literal.slice(1, end), literal.slice(end + 1)) }
  }),
)

/** Of these, what they read is bounded by the code before them: to so many characters. */
const boundedTo: Record<string, number> = {
  'turns/gateway-errors.ts: / Run `openclaw [^`]*`[^.]*\\./g': 4000,
  'openclaw/skills/skill-install.ts: /\\/\\S*\\/workspace\\//g': 1000,
}
/** What these read is no customer's and no agent's: settings of the operator, and Chowder's own pages. */
const trusted = /^(composition|commands|database|api\/docs)\/|^platform\/config\.ts|: \/\\\/\+\$\/$/

/** The patterns of a schema, as Ajv compiles them. */
function patternsIn(schema: unknown): string[] {
  if (Array.isArray(schema)) return schema.flatMap(patternsIn)
  if (!isObject(schema)) return []
  return [...(typeof schema.pattern === 'string' ? [schema.pattern] : []), ...Object.values(schema).flatMap(patternsIn)]
}
const inDocument = [...new Set(patternsIn(await readDocument()))].map((pattern) => ({
  name: pattern,
  regExp: new RegExp(pattern, 'u'),
}))

/** A text around a piece that is repeated until the text has a length. */
interface Attack {
  before: string
  piece: string
  after: string
}

const texts = ({ before, piece, after }: Attack, characters: number) =>
  before + piece.repeat(Math.ceil(characters / piece.length)) + after

/** Matching texts, as far as the generator knows the syntax of the pattern. */
function samplesOf(regExp: RegExp): string[] {
  try {
    return fc.sample(fc.stringMatching(new RegExp(regExp.source, regExp.flags.replace(/[^u]/g, ''))), {
      numRuns: samples,
      seed: 1,
    })
  } catch {
    return []
  }
}

const ends = ['', '\u0000!\n']
const letters = [
  ...Array.from({ length: 95 }, (_, at) => String.fromCharCode(32 + at)),
  '\t',
  '\n',
  '\r',
  'é',
  '漢',
  '\0',
]

/** Each character, pairs of the characters of the pattern, and matching texts with a part or a beginning repeated. */
function attacksOn(regExp: RegExp): Attack[] {
  const own = [...new Set(regExp.source.replace(/\\./g, ''))].slice(0, 8)
  const pieces = [
    ...letters,
    ...own.flatMap((one) => own.map((other) => one + other)),
    'aA0',
    '0.',
    'a-',
    '\\"',
    '\r\n',
  ]
  const plain = pieces.map((piece) => ({ before: '', piece }))
  const pumped = samplesOf(regExp).flatMap((sample) => {
    const places = Array.from({ length: Math.min(sample.length, 20) }, (_, at) => at)
    const within = places
      .slice(0, 10)
      .flatMap((at) => [1, 2].map((length) => ({ before: sample.slice(0, at), piece: sample.slice(at, at + length) })))
    return [...within, ...places.map((at) => ({ before: '', piece: sample.slice(0, at + 1) }))]
  })
  return [...plain, ...pumped].flatMap((one) => ends.map((after) => ({ ...one, after })))
}

/** The processor time of this thread in ms, which other programs do not lengthen. */
const cpuMs = () => {
  const { user, system } = process.threadCpuUsage()
  return (user + system) / 1000
}

/** The shortest times that a pattern takes for some texts, in ms: infinite for all when together they take too long. */
const context = createContext({ cpuMs })
function timesOf(regExp: RegExp, texts: string[], repetitions: number): number[] {
  Object.assign(context, { texts, repetitions, from: [regExp.source, regExp.flags.replace(/[gy]/g, '')] })
  try {
    return runInContext(
      `{ const pattern = new RegExp(...from)
      texts.map((text) => Math.min(...Array.from({ length: repetitions }, () => {
        const begun = cpuMs()
        pattern.test(text)
        return cpuMs() - begun
      }))) }`,
      context,
      { timeout: maxSieveMs },
    )
  } catch {
    return texts.map(() => Number.POSITIVE_INFINITY)
  }
}

/** The longest that a pattern takes for a text of so many characters, and for which. */
function worstOf(regExp: RegExp, characters: number): { ms: number; attack: Attack } {
  const attacks = attacksOn(regExp)
  const sieved = timesOf(
    regExp,
    attacks.map((attack) => texts(attack, Math.min(characters, sievedCharacters))),
    1,
  )
  const [first] = attacks
  if (first && !Number.isFinite(sieved[0])) return { attack: first, ms: Number.POSITIVE_INFINITY }
  const chosen = attacks
    .map((attack, at) => ({ attack, ms: sieved[at] ?? 0 }))
    .sort((a, b) => b.ms - a.ms)
    .slice(0, 3)
  const timed = chosen.map(({ attack }) => ({ attack, ms: timesOf(regExp, [texts(attack, characters)], 5)[0] ?? 0 }))
  return timed.reduce((worst, one) => (one.ms > worst.ms ? one : worst))
}

describe('A16: no text takes a pattern longer than 10 ms', () => {
  test.each(inDocument)('$name', ({ regExp }) => {
    const { ms, attack } = worstOf(regExp, maxCharacters)
    expect(ms, JSON.stringify(attack)).toBeLessThan(mostMs)
  })

  test('those in the code', () => {
    expect(inCode.length).toBeGreaterThan(100)
    expect(Object.keys(boundedTo).filter((name) => !inCode.some((one) => one.name === name))).toEqual([])
    const slow = inCode.flatMap(({ name, regExp }) => {
      if (trusted.test(name)) return []
      const { ms, attack } = worstOf(regExp, boundedTo[name] ?? 64 * 1024)
      return ms < mostMs ? [] : [`${name} takes ${ms.toFixed(0)} ms for ${JSON.stringify(attack)}`]
    })
    expect(slow).toEqual([])
  })

  test.each([/^(a+)+$/, /\s+$/, / Run `x [^`]*`[^.]*\./])('a slow pattern is found: %s', (regExp) => {
    expect(() => expect(worstOf(regExp, maxCharacters).ms).toBeLessThan(mostMs)).toThrow()
  })
})
