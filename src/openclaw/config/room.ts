import { isObject, mergePatch } from '#openclaw/json.ts'
import type { RoomPaths } from '#sandbox/driver.ts'

/**
 * The tools of an agent with a separate room. Tools that run programs or access files run in the room; the others ask
 * the gateway for the agent's own data. None of them changes the gateway or its plugins.
 */
const roomTools = [
  ...['exec', 'process', 'read', 'ls', 'write', 'edit', 'apply_patch', 'view_image'],
  ...['sessions_list', 'sessions_history', 'sessions_search', 'sessions_send', 'sessions_spawn', 'sessions_yield'],
  ...['subagents', 'session_status', 'web_fetch', 'web_search', 'message'],
]

/**
 * Settings that would run programs beside the gateway, or code of the workspace within it; `*` is any one key.
 * Forbidden with a separate room.
 */
const outsideRoom = [
  'agents.defaults.sandbox',
  'agents.defaults.cwd',
  'agents.entries.*.sandbox',
  'agents.entries.*.cwd',
  'agents.entries.*.runtime',
  'agents.entries.*.tools.exec',
  'agents.entries.*.tools.elevated',
  'agents.entries.*.tools.sandbox',
  'tools.exec',
  'tools.elevated',
  'tools.sandbox',
  'tools.media',
  'tools.links',
  'acp',
  'browser',
  'cloudWorkers',
  'commands',
  'hooks',
  'mcp',
  'nodeHost',
  'security',
].map((rule) => rule.split('.'))

/** The first path of overrides that a separate room forbids; null if there is none. */
export function findOutsideRoom(tree: Record<string, unknown>): string | null {
  for (const keys of outsideRoom) {
    const found = follow(tree, keys, [])
    if (found) return found.join('.')
  }
  return null
}

function follow(value: unknown, [key, ...rest]: readonly string[], path: readonly string[]): readonly string[] | null {
  if (key === undefined) return path
  if (!isObject(value)) return null
  for (const name of key === '*' ? Object.keys(value) : [key]) {
    const found = Object.hasOwn(value, name) ? follow(value[name], rest, [...path, name]) : null
    if (found) return found
  }
  return null
}

/** Removes those paths. */
function without(value: unknown, rules: readonly (readonly string[])[]): unknown {
  if (!isObject(value)) return value
  const kept = Object.entries(value).flatMap(([name, inner]) => {
    const inside = rules.filter(([key]) => key === '*' || key === name).map(([, ...rest]) => rest)
    return inside.some((rest) => rest.length === 0) ? [] : [[name, without(inner, inside)] as const]
  })
  return Object.fromEntries(kept)
}

/**
 * The overrides of an agent with a separate room, and the configuration that makes OpenClaw run its tools there: as on
 * an SSH host, by a program in place of `ssh`. The host's workspace is the gateway's own, which OpenClaw must neither
 * fill nor delete. Commands get the variables: those of `docker` also apply to SSH hosts.
 */
export function withRoom(
  overrides: Record<string, unknown>,
  { ssh, root }: RoomPaths,
  workspace: string,
  variables: Record<string, string>,
): unknown {
  return mergePatch(without(overrides, outsideRoom), {
    agents: {
      defaults: {
        sandbox: {
          mode: 'all',
          backend: 'ssh',
          scope: 'shared',
          workspaceAccess: 'none',
          workspaceRoot: workspace,
          ssh: {
            target: 'agent@room:22',
            command: ssh,
            workspaceRoot: root,
            strictHostKeyChecking: false,
            updateHostKeys: false,
          },
          prune: { idleHours: 0, maxAgeDays: 0 },
          ...(Object.keys(variables).length > 0 && { docker: { env: variables } }),
        },
      },
    },
    tools: { elevated: { enabled: false }, sandbox: { tools: { allow: roomTools } } },
  })
}
