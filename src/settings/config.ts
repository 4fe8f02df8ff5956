import { readFileSync } from 'node:fs'
import { Value } from '@sinclair/typebox/value'
import { closestWord } from '#platform/closest.ts'
import { type Config, Env, type Setting } from './env.ts'
import { entriesOf, isOpenToOthers } from './exposure.ts'
import { readResourceSettings } from './resources.ts'

export type { Config } from './env.ts'

type Rule = Setting & { anyOf?: { const: string }[]; minimum?: number; maximum?: number }

/** The rule of a setting, appended to its name in error messages, without the setting's value. */
export function ruleOf(schema: Rule): string {
  if (schema.const) return `must be ${schema.const}`
  if (schema.anyOf) return `must be one of ${schema.anyOf.map((choice) => choice.const).join(', ')}`
  if (schema.minimum !== undefined) return `must be a whole number from ${schema.minimum} to ${schema.maximum}`
  return schema.rule ?? 'must not be empty'
}

const rule = (name: string) => ruleOf(Env.properties[name as keyof typeof Env.properties])

/** Converts only whole numbers: a conversion that rounds would accept `80.5` as a port. */
const toNumber = ([name, text]: [string, string | undefined]): [string, unknown] => {
  const { type } = Env.properties[name as keyof typeof Env.properties] ?? {}
  return [name, type === 'integer' && /^\d+$/.test(text ?? '') ? Number(text) : text]
}

/** The environment is invalid. The message has one line for each variable, with its name and without its value. */
export class BadEnvironment extends Error {
  override name = 'BadEnvironment'
}

/** Both of Stripe's settings are required or none. */
function stripeFaults({ STRIPE_SECRET_KEY: key, STRIPE_WEBHOOK_SECRET: secret }: NodeJS.ProcessEnv): string[] {
  if (key && !secret) return ['STRIPE_WEBHOOK_SECRET is required with STRIPE_SECRET_KEY']
  if (secret && !key) return ['STRIPE_SECRET_KEY is required with STRIPE_WEBHOOK_SECRET']
  return []
}

const secretVariables = Object.entries<Setting>(Env.properties)
  .filter(([, { isSecret }]) => isSecret)
  .map(([name]) => name)

/** The names of all variables that are settings, including those of files with secrets. */
export const settingNames: readonly string[] = [
  ...Object.keys(Env.properties),
  ...secretVariables.map((name) => `${name}_FILE`),
]

/** Sets each variable whose `<name>_FILE` is set to the file's trimmed content. Returns the faults. */
function readSecretFiles(set: NodeJS.ProcessEnv): string[] {
  const faults: string[] = []
  for (const name of secretVariables) {
    const path = set[`${name}_FILE`]
    if (path === undefined) continue
    if (set[name] !== undefined) faults.push(`${name} and ${name}_FILE are both set: set one of them`)
    try {
      const text = readFileSync(path, 'utf8').trim()
      if (text === '') faults.push(`${name}_FILE names ${path}, which is empty`)
      else set[name] = text
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      const why = code === 'ENOENT' ? 'does not exist' : `cannot be read: ${code}`
      faults.push(`${name}_FILE names ${path}, which ${why}. Correct the path, or make the file readable for Chowder`)
    }
  }
  return faults
}

/** Placeholders for passwords in examples. */
const placeholder = /^(<.*>|(change|replace)[-_ ]?me|(your[-_ ]?)?password|placeholder|secret|example)$/i

function placeholderFaults({ DATABASE_URL = '', CHOWDER_SECRET_KEY = '' }: NodeJS.ProcessEnv): string[] {
  const faults: string[] = []
  const password = /^\w+:\/\/[^:@/]*:([^@]*)@/.exec(DATABASE_URL)?.[1] ?? ''
  if (placeholder.test(password)) {
    faults.push('DATABASE_URL has a placeholder as its password: set the real password')
  }
  if (/\bA{42}[A-Za-z0-9+/]=/.test(CHOWDER_SECRET_KEY)) {
    faults.push('CHOWDER_SECRET_KEY is a placeholder: make one with `openssl rand -base64 32` and keep it')
  }
  return faults
}

/** The settings that fit their pattern but are invalid, such as `http://999.9.9.9`. */
const meaningless = ({ AGENT_RESOURCES = '', CHOWDER_PUBLIC_URL, CORS_ALLOWED_ORIGINS }: NodeJS.ProcessEnv) => [
  ...(readResourceSettings(AGENT_RESOURCES) ? [] : ['AGENT_RESOURCES']),
  ...(URL.canParse(CHOWDER_PUBLIC_URL ?? 'http://a') ? [] : ['CHOWDER_PUBLIC_URL']),
  ...(entriesOf(CORS_ALLOWED_ORIGINS).every((origin) => URL.canParse(origin)) ? [] : ['CORS_ALLOWED_ORIGINS']),
]

/**
 * Parses the environment. An empty variable counts as unset, because docker-compose and .env files set empty variables.
 * Throws BadEnvironment, which names all invalid variables.
 */
export function loadConfig(env: NodeJS.ProcessEnv = process.env): Config {
  const set = Object.fromEntries(Object.entries(env).filter(([, value]) => value !== undefined && value !== ''))
  const fileFaults = readSecretFiles(set)
  const candidate = Value.Clean(Env, Value.Default(Env, Object.fromEntries(Object.entries(set).map(toNumber))))
  const misfits = [...Value.Errors(Env, candidate)].map((fault) => fault.path.split('/')[1] ?? '')
  const lines = [...new Set([...misfits, ...meaningless(set)])].map((name) => `${name} ${rule(name)}`)
  if (set.DATABASE_URL && !set.CHOWDER_SECRET_KEY) {
    lines.push('CHOWDER_SECRET_KEY is required with DATABASE_URL: make one with `openssl rand -base64 32` and keep it')
  }
  lines.push(...fileFaults, ...placeholderFaults(set), ...stripeFaults(set))
  if (lines.length === 0 && isOpenToOthers(candidate as Config)) {
    lines.push(
      'SIGNUP=open is for an API that only this machine reaches: HOST is a loopback address, TRUST_PROXY is 0, and ' +
        'CHOWDER_PUBLIC_URL and CHOWDER_ALLOWED_HOSTS name no other host. Set SIGNUP to token or closed',
    )
  }
  if (lines.length > 0) throw new BadEnvironment(`bad environment:\n  ${lines.join('\n  ')}`)
  return Object.freeze(candidate as Config)
}

/** Variables of docker-compose.yml that this program does not read. CHOWDER_PORT there is PORT here. */
const composeVariables = ['CHOWDER_VERSION', 'CHOWDER_COMMIT', 'CHOWDER_BIND', 'CHOWDER_DOMAIN']
/** Shorter names, such as PORT, are one letter away from too many others. */
const minLetters = 8

/**
 * A sentence about each variable that is probably a misspelt setting: every unknown name that begins with `CHOWDER_`,
 * and other names that are one letter away from a setting.
 */
export function unknownSettings(env: NodeJS.ProcessEnv = process.env): string[] {
  const sentences: string[] = []
  for (const name of Object.keys(env).sort()) {
    if (settingNames.includes(name) || composeVariables.includes(name)) continue
    const isOurs = name.startsWith('CHOWDER_')
    if (!isOurs && name.length < minLetters) continue
    const meant = isOurs
      ? (closestWord(name, settingNames) ?? closestWord(name.slice('CHOWDER_'.length), settingNames))
      : closestWord(name, settingNames, 1)
    if (meant) sentences.push(`${name} is no setting of Chowder: did you mean ${meant}?`)
    else if (isOurs) sentences.push(`${name} is no setting of Chowder. docs/settings.md has them all.`)
  }
  return sentences
}
