import { isDeepStrictEqual } from 'node:util'
import { type GatewayConfig, gatewayOwned } from './config.ts'
import { isObject } from './json.ts'

/** What the gateway shows in place of a secret. */
const redacted = '__OPENCLAW_REDACTED__'

/** Params of the gateway's `config.patch`: a merge patch, and the arrays that may lose elements by it. */
export interface ConfigPatch {
  patch: Record<string, unknown>
  replacePaths: string[]
}

const holdsRedacted = (value: unknown): boolean =>
  value === redacted ||
  (Array.isArray(value) && value.some(holdsRedacted)) ||
  (isObject(value) && Object.values(value).some(holdsRedacted))

/** Same as far as can be seen: a secret that the gateway hides equals any text. */
function looksSame(shown: unknown, wanted: unknown): boolean {
  if (shown === redacted) return typeof wanted === 'string'
  if (Array.isArray(shown) && Array.isArray(wanted)) {
    return shown.length === wanted.length && shown.every((item, at) => looksSame(item, wanted[at]))
  }
  if (!isObject(shown) || !isObject(wanted)) return isDeepStrictEqual(shown, wanted)
  const keys = new Set([...Object.keys(shown), ...Object.keys(wanted)])
  return [...keys].every((key) => looksSame(shown[key], wanted[key]))
}

const below = (path: string, key: string) => (path === '' ? key : `${path}.${key}`)

/** Every array in a value, by its path: removing the value removes their elements, which the gateway wants confirmed. */
function arraysIn(value: unknown, path: string): string[] {
  if (Array.isArray(value)) return [path]
  if (!isObject(value)) return []
  return Object.entries(value).flatMap(([key, inner]) => arraysIn(inner, below(path, key)))
}

/**
 * The merge patch that turns one configuration into the other. `effective` is the first with the gateway's own defaults
 * in it: arrays of those must be confirmed too. Hidden secrets are always in the patch, since nobody can see whether
 * they changed; the gateway does nothing on a patch that changes nothing. null when there is nothing to send.
 */
export function patchFor(shown: GatewayConfig, effective: GatewayConfig, wanted: GatewayConfig): ConfigPatch | null {
  const replacePaths: string[] = []

  const difference = (from: Record<string, unknown>, full: unknown, to: Record<string, unknown>, path: string) => {
    const patch: Record<string, unknown> = {}
    for (const key of new Set([...Object.keys(from), ...Object.keys(to)])) {
      const at = below(path, key)
      if (path === '' && gatewayOwned.includes(key)) continue
      const old = from[key]
      const fullOld = isObject(full) ? full[key] : undefined
      const next = to[key]
      if (looksSame(old, next) && !holdsRedacted(old)) continue
      if (isObject(old) && isObject(next)) {
        const inner = difference(old, fullOld, next, at)
        if (Object.keys(inner).length > 0) patch[key] = inner
        continue
      }
      if (!isObject(next)) replacePaths.push(...new Set([...arraysIn(old, at), ...arraysIn(fullOld, at)]))
      patch[key] = next ?? null
    }
    return patch
  }

  const patch = difference(shown, effective, wanted, '')
  return Object.keys(patch).length > 0 ? { patch, replacePaths } : null
}

/** Whether a configuration that the gateway shows is the wanted one as far as can be seen, the gateway's own keys aside. */
export function looksApplied(shown: GatewayConfig, wanted: GatewayConfig): boolean {
  const withoutOwn = (config: GatewayConfig) =>
    Object.fromEntries(Object.entries(config).filter(([key]) => !gatewayOwned.includes(key)))
  return looksSame(withoutOwn(shown), withoutOwn(wanted))
}
