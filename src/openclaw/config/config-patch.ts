import { isDeepStrictEqual } from 'node:util'
import { isObject } from '#openclaw/json.ts'
import { changeablePart, type GatewayConfig } from './config.ts'

/** The gateway's placeholder for a secret. */
const redacted = '__OPENCLAW_REDACTED__'

/** Parameters of the gateway's `config.patch`: a merge patch, and the paths of the arrays that it may shorten. */
export interface ConfigPatch {
  patch: Record<string, unknown>
  replacePaths: string[]
}

const holdsRedacted = (value: unknown): boolean =>
  value === redacted ||
  (Array.isArray(value) && value.some(holdsRedacted)) ||
  (isObject(value) && Object.values(value).some(holdsRedacted))

/** Compares the visible parts: a hidden secret equals any text. */
function isSame(shown: unknown, wanted: unknown): boolean {
  if (shown === redacted) return typeof wanted === 'string'
  if (Array.isArray(shown) && Array.isArray(wanted)) {
    return shown.length === wanted.length && shown.every((item, index) => isSame(item, wanted[index]))
  }
  if (!isObject(shown) || !isObject(wanted)) return isDeepStrictEqual(shown, wanted)
  const keys = new Set([...Object.keys(shown), ...Object.keys(wanted)])
  return [...keys].every((key) => isSame(shown[key], wanted[key]))
}

const childPath = (path: string, key: string) => (path === '' ? key : `${path}.${key}`)

/** The paths of all arrays in a value. The gateway requires a confirmation to remove their elements. */
function arraysIn(value: unknown, path: string): string[] {
  if (Array.isArray(value)) return [path]
  if (!isObject(value)) return []
  return Object.entries(value).flatMap(([key, inner]) => arraysIn(inner, childPath(path, key)))
}

/**
 * The merge patch that turns `shown` into `wanted`; null if there is nothing to send. `effective` is `shown` with the
 * gateway's defaults, whose arrays must be confirmed too. Hidden secrets are always in the patch, because their change
 * is not visible; the gateway's own are not. The gateway ignores a patch that changes nothing.
 */
export function patchFor(
  shown: GatewayConfig,
  effective: GatewayConfig,
  wanted: GatewayConfig,
  { keepsProxy = false } = {},
): ConfigPatch | null {
  const replacePaths: string[] = []

  const difference = (from: Record<string, unknown>, full: unknown, to: Record<string, unknown>, path: string) => {
    const patch: Record<string, unknown> = {}
    for (const key of new Set([...Object.keys(from), ...Object.keys(to)])) {
      const keyPath = childPath(path, key)
      const old = from[key]
      const fullOld = isObject(full) ? full[key] : undefined
      const next = to[key]
      if (isSame(old, next) && !holdsRedacted(old)) continue
      if (isObject(old) && isObject(next)) {
        const inner = difference(old, fullOld, next, keyPath)
        if (Object.keys(inner).length > 0) patch[key] = inner
        continue
      }
      if (!isObject(next)) replacePaths.push(...new Set([...arraysIn(old, keyPath), ...arraysIn(fullOld, keyPath)]))
      patch[key] = next ?? null
    }
    return patch
  }

  const of = (config: GatewayConfig) => changeablePart(config, keepsProxy)
  const patch = difference(of(shown), of(effective), of(wanted), '')
  return Object.keys(patch).length > 0 ? { patch, replacePaths } : null
}

/** Whether the visible, changeable parts of a running gateway's configuration are as wanted. */
export const isApplied = (shown: GatewayConfig, wanted: GatewayConfig, { keepsProxy = false } = {}): boolean =>
  isSame(changeablePart(shown, keepsProxy), changeablePart(wanted, keepsProxy))
