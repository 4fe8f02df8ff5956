import { AppError } from '#errors/app-error.ts'
import { isObject, mergePatch, nestedEntries, unsafeKeys } from '#openclaw/json.ts'

/** The settings of a skill in the gateway's configuration, and the variables of the shell of a separate room. */
export type SkillSettings = Record<string, unknown> & { shell_env?: string[] }

/** A change of a skill's settings: merged key by key, at every depth; null removes a key. */
export interface SettingsPatch {
  enabled?: boolean
  apiKey?: string | null
  env?: Record<string, string | null>
  config?: Record<string, unknown>
  /** Replaces the names of the variables in the shell of the separate room. */
  shell_env?: string[]
}

const maxBytes = 128 * 1024
const maxDepth = 32
const shownCharacters = 100
/** The number of shown characters of a secret, and the length from which a secret stays strong without them. */
const shownOfSecret = 4
const minMaskedLength = 16

const variableName = /^[A-Za-z_][A-Za-z0-9_]{0,127}$/

/** Variables that make programs run other code or trust other hosts, and variables of OpenClaw itself. */
const reservedVariables = [
  /^(PATH|HOME|SHELL|USER|LOGNAME|PWD|OLDPWD|TMPDIR|TMP|TEMP|IFS|ENV|CDPATH|EDITOR|VISUAL|PAGER|BROWSER|PS4|PROMPT_COMMAND)$/,
  /^(LD_|DYLD_|GLIBC_|MALLOC_|BASH_|ZDOTDIR|NODE_|NPM_CONFIG_|PYTHON|PERL5|RUBY(OPT|LIB)|JAVA_TOOL_OPTIONS|JDK_JAVA_OPTIONS|_JAVA_OPTIONS)/,
  /^(OPENCLAW_|CLAWHUB_|CLAWDHUB_|OPENSSL_|SSL_CERT_|SSLKEYLOGFILE|CURL_CA_BUNDLE|REQUESTS_CA_BUNDLE|GCONV_PATH|LOCPATH)/,
  /^GIT_(SSH|CONFIG|EXEC_PATH|ASKPASS|EDITOR|PAGER|PROXY|TEMPLATE_DIR|EXTERNAL_DIFF)/,
  /^(HTTP|HTTPS|ALL|NO)_PROXY$/,
]

/** Throws invalid, naming the first variable that a skill must not set. */
export function checkVariables(env: Record<string, unknown>): void {
  for (const name of Object.keys(env)) {
    const shown = JSON.stringify(name.slice(0, shownCharacters))
    if (!variableName.test(name)) {
      throw new AppError(
        'invalid_value',
        `env: ${shown} is not the name of a variable. Use letters, digits and _, and no digit at the beginning.`,
      )
    }
    if (reservedVariables.some((rule) => rule.test(name.toUpperCase()))) {
      throw new AppError('invalid_value', `env: ${shown} cannot be set for a skill: it changes how programs run.`)
    }
  }
}

/** Whether OpenClaw can store settings under the name of a skill. Publishers choose the names. */
export const isUsableName = (name: string): boolean =>
  name.length > 0 && name.length <= 128 && !/\p{Cc}/u.test(name) && !unsafeKeys.has(name)

function checkConfig(config: Record<string, unknown>): void {
  for (const { key, value, depth } of nestedEntries(config)) {
    if (depth > maxDepth && typeof value === 'object' && value !== null) {
      throw new AppError('invalid_value', `config is nested deeper than ${maxDepth} levels.`)
    }
    if (unsafeKeys.has(key)) throw new AppError('invalid_value', `config must not contain the key ${key}.`)
  }
}

/** Throws invalid for a patch with a forbidden variable or key. */
export function checkPatch({ env, config }: SettingsPatch): void {
  if (env) checkVariables(env)
  if (config) checkConfig(config)
}

/** Throws invalid, naming the first shell variable that the skill does not have. */
function requireVariables(names: readonly string[], env: unknown): void {
  const lacking = names.find((name) => !isObject(env) || !Object.hasOwn(env, name))
  if (lacking === undefined) return
  throw new AppError(
    'invalid_value',
    `shell_env: ${JSON.stringify(lacking)} is no variable of this skill. Set its value in env first, or at the same time.`,
  )
}

const isEmpty = (value: unknown) =>
  Array.isArray(value) ? value.length === 0 : isObject(value) && Object.keys(value).length === 0

/**
 * The settings after a change, without empty ones. Throws invalid when they exceed 128 KiB, and when the change names a
 * variable that is not set.
 */
export function mergeSettings(stored: SkillSettings, patch: SettingsPatch): SkillSettings {
  const merged = mergePatch(stored, patch) as SkillSettings
  requireVariables(patch.shell_env ?? [], merged.env)
  if (Buffer.byteLength(JSON.stringify(merged)) > maxBytes) {
    throw new AppError(
      'invalid_value',
      `The settings of one skill must not be larger than ${maxBytes / 1024} KiB together.`,
    )
  }
  return Object.fromEntries(Object.entries(merged).filter(([, value]) => !isEmpty(value)))
}

/** Shows the last characters of a long secret, so that its owner recognizes it, and nothing of a short one. */
export const masked = (secret: string): string =>
  `••••${secret.length >= minMaskedLength ? secret.slice(-shownOfSecret) : ''}`
