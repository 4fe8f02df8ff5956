import type { GatewayClient } from '#openclaw/gateway/gateway.ts'
import { GatewayRefusal } from '#openclaw/gateway/gateway-errors.ts'
import { isObject } from '#openclaw/json.ts'
import { poll } from '#platform/poll.ts'
import { referenceOf, type SkillReference } from './skill-reference.ts'

/** A skill in the list of a running gateway. Its texts come from OpenClaw, a publisher or the agent. */
export interface GatewaySkill {
  /** The skill's key in the configuration. */
  key: string
  description: string
  /** `openclaw`: OpenClaw includes it. `workspace`: the agent or a person has written it there. */
  source: 'clawhub' | 'openclaw' | 'workspace'
  /** The path of its folder in the workspace; null when the folder is elsewhere. */
  path: string | null
  enabled: boolean
  /** Whether it is enabled and all its requirements are met. */
  ready: boolean
  missing: { env: string[]; bins: string[] }
  /** The gateway's record of the installation. */
  installed: { reference: SkillReference; version: string; digest: string | null } | null
}

const statusTimeoutMs = 15_000
/** Observed: an installed skill is listed immediately, and a removed one is no longer listed after 0.3 s. */
const listTimeoutMs = 5000
const pollMs = 100
const maxListed = 1000
const maxNameCharacters = 256
const maxDescriptionCharacters = 2000

const strings = (value: unknown): string[] =>
  Array.isArray(value) ? value.filter((item): item is string => typeof item === 'string') : []

function toSkill(raw: Record<string, unknown>, workspace: unknown): GatewaySkill[] {
  const { name, skillKey, description, baseDir } = raw
  const key = typeof skillKey === 'string' ? skillKey : name
  if (typeof key !== 'string' || key.length > maxNameCharacters) return []
  const missing = isObject(raw.missing) ? raw.missing : {}
  const clawhub = isObject(raw.clawhub) ? raw.clawhub : {}
  const reference = referenceOf(clawhub.ownerHandle, clawhub.slug)
  const { installedVersion: version } = clawhub
  const digest = isObject(clawhub.artifact) ? clawhub.artifact.sha256 : undefined
  const installed =
    clawhub.status === 'linked' && reference && typeof version === 'string'
      ? { reference, version, digest: typeof digest === 'string' && /^[0-9a-f]{64}$/.test(digest) ? digest : null }
      : null
  const isInWorkspace =
    typeof workspace === 'string' && typeof baseDir === 'string' && baseDir.startsWith(`${workspace}/`)
  return [
    {
      key,
      description: typeof description === 'string' ? description.slice(0, maxDescriptionCharacters) : '',
      source: installed ? 'clawhub' : isInWorkspace ? 'workspace' : 'openclaw',
      path: isInWorkspace ? baseDir.slice(workspace.length) : null,
      enabled: raw.disabled !== true,
      ready: raw.eligible === true,
      missing: { env: strings(missing.env), bins: [...strings(missing.bins), ...strings(missing.anyBins)] },
      installed,
    },
  ]
}

/**
 * All skills of a running gateway, except those whose key has more than 256 characters. Throws the errors of
 * GatewayClient.
 */
export async function readSkills(gateway: GatewayClient): Promise<GatewaySkill[]> {
  const answer = await gateway.call('skills.status', {}, { timeoutMs: statusTimeoutMs })
  const { skills, workspaceDir } = isObject(answer) ? answer : {}
  if (!Array.isArray(skills)) throw new GatewayRefusal('UNREADABLE', 'the gateway does not show its skills')
  return skills
    .filter(isObject)
    .slice(0, maxListed)
    .flatMap((raw) => toSkill(raw, workspaceDir))
}

/** The skill that a gateway lists in the workspace folder of this skill's slug, from any source. */
export const skillIn = (skills: readonly GatewaySkill[], { slug }: SkillReference): GatewaySkill | undefined =>
  skills.find(({ path }) => path === `/skills/${slug}`)

/** Waits, for 5 s at most, until the gateway lists a skill or no longer lists it. Returns the list. */
export async function waitForList(
  gateway: GatewayClient,
  reference: SkillReference,
  isWanted: boolean,
  signal: AbortSignal,
): Promise<GatewaySkill[]> {
  let skills: GatewaySkill[] = []
  async function isReached(): Promise<boolean> {
    skills = await readSkills(gateway)
    return (skillIn(skills, reference) !== undefined) === isWanted
  }
  await poll(isReached, { pauseMs: pollMs, timeoutMs: listTimeoutMs, signal })
  return skills
}
