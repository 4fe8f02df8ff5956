import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { mergePatch, nestedEntries, unsafeKeys } from '#openclaw/json.ts'
import { getChannelDefinition, type Settings } from './catalogue.ts'

const maxDepth = 16
const maxValues = 1000
/** The limit of all settings of a channel together: every request for the instance loads them. */
const maxCharacters = 128 * 1024
const maxFieldLength = 4096
/** Names whose value is a file that the gateway reads or a program that it runs. */
const pathKeys = new Set([
  'cliPath',
  'tokenFile',
  'secretFile',
  'serviceAccountFile',
  'certificatePath',
  'configPath',
  'authDir',
  'trustedLocalFileRoots',
])

function checkConfig(config: Settings): void {
  if (Object.hasOwn(config, 'enabled')) {
    throw new AppError(
      'invalid_value',
      'config.enabled cannot be set: connect enables the channel, disconnect disables it.',
      { param: 'config' },
    )
  }
  let values = 0
  for (const { key, depth } of nestedEntries(config)) {
    values += 1
    if (depth > maxDepth) throw new AppError('invalid_value', `config is nested deeper than ${maxDepth} levels.`)
    if (values > maxValues) throw new AppError('invalid_value', `config has more than ${maxValues} values.`)
    if (unsafeKeys.has(key) || pathKeys.has(key))
      throw new AppError('invalid_value', `config cannot have a key ${key}.`)
  }
}

const isFilled = (value: unknown) => typeof value === 'string' && value.trim() !== '' && value.length <= maxFieldLength

/**
 * Merges a caller's `config` into the stored settings of a channel, which are null if there are none. Translates
 * documented names, keeps OpenClaw's own names, and removes keys set to null. Throws invalid for a missing required
 * field, which it names, and for a `config` that is unsafe or too large.
 */
export function mergeSettings(channel: string, config: Settings, stored: Settings | null): Settings {
  const { fields, defaults, generate } = getChannelDefinition(channel)
  checkConfig(config)
  const keys = new Map(Object.entries(fields).map(([name, { key }]) => [name, key]))
  const translated = Object.fromEntries(Object.entries(config).map(([name, value]) => [keys.get(name) ?? name, value]))
  const settings = mergePatch(stored ?? { ...defaults, ...generate?.() }, translated) as Settings
  if (JSON.stringify(settings).length > maxCharacters) {
    throw new AppError(
      'invalid_value',
      `config and the stored settings have more than ${maxCharacters} characters together. Remove keys with null.`,
    )
  }
  const missing = [...keys].filter(([, key]) => !isFilled(settings[key])).map(([name]) => name)
  if (missing.length > 0) throw new AppError('invalid_value', texts.missingChannelFields(channel, missing))
  return settings
}
