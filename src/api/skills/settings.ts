import { isObject, mergePatch } from '#openclaw/json.ts'
import { AppError } from '#platform/errors.ts'

/** What stands under a skill's key in the gateway's configuration. */
export type SkillSettings = Record<string, unknown>

/** Changes of a skill's settings: merged key by key, at every depth; null removes. */
export interface SettingsPatch {
  enabled?: boolean
  apiKey?: string | null
  env?: Record<string, string | null>
  config?: Record<string, unknown>
}

const maxBytes = 128 * 1024
const maxDepth = 32
const shownCharacters = 100
const shownOfSecret = 4
const longEnoughToShow = 16

const variable = /^[A-Za-z_][A-Za-z0-9_]{0,127}$/

/** Variables that make a program run other code, or trust others, or that OpenClaw itself listens to. */
const reserved = [
  /^(PATH|HOME|SHELL|USER|LOGNAME|PWD|OLDPWD|TMPDIR|TMP|TEMP|IFS|ENV|CDPATH|EDITOR|VISUAL|PAGER|BROWSER|PS4|PROMPT_COMMAND)$/,
  /^(LD_|DYLD_|GLIBC_|MALLOC_|BASH_|ZDOTDIR|NODE_|NPM_CONFIG_|PYTHON|PERL5|RUBY(OPT|LIB)|JAVA_TOOL_OPTIONS|JDK_JAVA_OPTIONS|_JAVA_OPTIONS)/,
  /^(OPENCLAW_|CLAWHUB_|CLAWDHUB_|OPENSSL_|SSL_CERT_|SSLKEYLOGFILE|CURL_CA_BUNDLE|REQUESTS_CA_BUNDLE|GCONV_PATH|LOCPATH)/,
  /^GIT_(SSH|CONFIG|EXEC_PATH|ASKPASS|EDITOR|PAGER|PROXY|TEMPLATE_DIR|EXTERNAL_DIFF)/,
  /^(HTTP|HTTPS|ALL|NO)_PROXY$/,
]

/** Throws AppError `invalid` naming the first variable that a skill must not set. */
export function checkVariables(env: Record<string, unknown>): void {
  for (const name of Object.keys(env)) {
    const shown = JSON.stringify(name.slice(0, shownCharacters))
    if (!variable.test(name)) {
      throw new AppError(
        'invalid',
        `env: ${shown} is not the name of a variable. Use letters, digits and _, no digit first.`,
      )
    }
    if (reserved.some((rule) => rule.test(name.toUpperCase()))) {
      throw new AppError('invalid', `env: ${shown} cannot be set for a skill: it changes how programs themselves run.`)
    }
  }
}

/** Keys that reach JavaScript's prototypes, and the one that makes the gateway read another file. */
const poisonous = new Set(['__proto__', 'constructor', 'prototype', '$include'])

/** Whether a skill may be configured under a name: publishers choose it freely. */
export const isUsableName = (name: string): boolean =>
  name.length > 0 && name.length <= 128 && !/\p{Cc}/u.test(name) && !poisonous.has(name)

/** A loop, because nesting may be of any depth. */
function checkConfig(config: Record<string, unknown>): void {
  const open: { value: unknown; depth: number }[] = [{ value: config, depth: 0 }]
  for (let next = open.pop(); next; next = open.pop()) {
    const { value, depth } = next
    if (typeof value !== 'object' || value === null) continue
    if (depth > maxDepth) throw new AppError('invalid', `config is nested deeper than ${maxDepth} levels.`)
    for (const [key, inner] of Object.entries(value)) {
      if (poisonous.has(key)) throw new AppError('invalid', `config must not contain the key ${key}.`)
      open.push({ value: inner, depth: depth + 1 })
    }
  }
}

/** Refuses a patch that could never be taken, before anything is asked. Throws AppError `invalid`. */
export function checkPatch({ env, config }: SettingsPatch): void {
  if (env) checkVariables(env)
  if (config) checkConfig(config)
}

/** The settings after a change; empty ones have no `env` and `config` either. Throws AppError `invalid` beyond 128 KiB. */
export function mergeSettings(stored: SkillSettings, patch: SettingsPatch): SkillSettings {
  const merged = mergePatch(stored, patch) as SkillSettings
  if (Buffer.byteLength(JSON.stringify(merged)) > maxBytes) {
    throw new AppError('invalid', `The settings of one skill must not be larger than ${maxBytes / 1024} KiB together.`)
  }
  return Object.fromEntries(
    Object.entries(merged).filter(([, value]) => !(isObject(value) && Object.keys(value).length === 0)),
  )
}

/** Enough to recognize a secret by, never enough to use it: the last characters, of long ones only. */
export const masked = (secret: string): string =>
  `••••${secret.length >= longEnoughToShow ? secret.slice(-shownOfSecret) : ''}`
