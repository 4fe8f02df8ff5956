import { hash } from 'node:crypto'
import { posix } from 'node:path'
import { buffer } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import { AppError } from '#platform/errors.ts'
import { type SandboxFiles, SandboxPathError } from '#sandbox/driver.ts'
import { referenceOf, referenceText, type SkillReference, type SkillRelease } from './clawhub.ts'
import { type GatewayClient, GatewayRefusal } from './gateway.ts'
import { isObject } from './json.ts'
import { workspacePath } from './launch.ts'

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
const installTimeoutMs = 60_000
/** Observed: an installed skill is listed immediately, and a removed one is no longer listed after 0.3 s. */
const listTimeoutMs = 5000
const pollMs = 100
const maxListed = 1000
const maxNameCharacters = 256
const maxDescriptionCharacters = 2000
const maxFileBytes = 16 * 1024 * 1024
const maxCheckedBytes = 64 * 1024 * 1024
const maxLockBytes = 4 * 1024 * 1024
const shownCharacters = 500
const maxOutputCharacters = 4000
const lockPath = `${workspacePath}/.clawhub/lock.json`
/**
 * Files that the registry adds to each download, or replaces in it, and files that the gateway adds to each install.
 */
const generated = new Set(['skill-card.md', '_meta.json', '.clawhub'])

const strings = (value: unknown): string[] =>
  Array.isArray(value) ? value.filter((item): item is string => typeof item === 'string') : []

const folderOf = (slug: string) => `${workspacePath}/skills/${slug}`

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
 * All skills of a running gateway, except those whose key has more than 256 characters. Throws as GatewayClient does.
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
async function waitForList(
  gateway: GatewayClient,
  reference: SkillReference,
  isWanted: boolean,
  signal: AbortSignal,
): Promise<GatewaySkill[]> {
  for (const deadline = performance.now() + listTimeoutMs; ; await sleep(pollMs, undefined, { signal })) {
    const skills = await readSkills(gateway)
    if ((skillIn(skills, reference) !== undefined) === isWanted || performance.now() > deadline) return skills
  }
}

/**
 * Returns a sentence on why an installed skill cannot stay, or null. `all` are the gateway's skills after the install.
 */
export type Objection = (skill: GatewaySkill, all: readonly GatewaySkill[]) => string | null

/**
 * Lets the gateway download and install one version. Then verifies that the installed files are exactly the published
 * ones, byte for byte, because the gateway does not compare them. The check is left out when the registry lists no
 * files. With `replace`, the skill replaces the content of its folder.
 *
 * Throws AppError `invalid` when the gateway refuses. Also removes the skill and throws `invalid` when its files
 * differ, OpenClaw cannot use it, or `objection` returns a sentence. A crash half-way leaves the skill in the
 * workspace; a repeated call with `replace` verifies it again.
 */
export async function installRelease(
  gateway: GatewayClient,
  files: SandboxFiles,
  { reference, release, replace }: { reference: SkillReference; release: SkillRelease; replace: boolean },
  objection: Objection,
  signal: AbortSignal,
): Promise<{ skill: GatewaySkill; output: string }> {
  const slug = referenceText(reference)
  const params = { source: 'clawhub', slug, version: release.version, ...(replace && { force: true }) }
  const answer = await gateway
    .call('skills.install', params, { timeoutMs: installTimeoutMs })
    .catch((error: unknown) => {
      throw error instanceof GatewayRefusal ? installError(error, slug) : error
    })
  const changed = await differenceFrom(release, files, reference, signal)
  const all = changed === null ? await waitForList(gateway, reference, true, signal) : []
  const skill = skillIn(all, reference)
  const fault = changed ?? faultOf(skill, release, (found) => objection(found, all))
  if (fault !== null || !skill) {
    await removeSkill(gateway, files, reference, signal)
    const note = replace ? ' The previous content of its folder is removed too.' : ''
    throw new AppError('invalid', `${slug} ${release.version} is not installed: ${fault}${note}`)
  }
  return { skill, output: outputOf(answer) }
}

function installError(cause: GatewayRefusal, slug: string): AppError {
  if (cause.message.includes('temporarily unavailable')) {
    return new AppError('gateway_unreachable', 'The skill registry does not answer OpenClaw. Try again later.', {
      cause,
    })
  }
  const message = cause.message.replaceAll(/\/\S*\/workspace\//g, '').slice(0, shownCharacters)
  return new AppError('invalid', `OpenClaw did not install ${slug}: ${message}`, { cause })
}

function outputOf(answer: unknown): string {
  const { message, warning } = isObject(answer) ? answer : {}
  const texts = [message, warning].filter((text) => typeof text === 'string')
  return texts.join('\n').slice(0, maxOutputCharacters)
}

function faultOf(
  skill: GatewaySkill | undefined,
  { version }: SkillRelease,
  objection: (skill: GatewaySkill) => string | null,
): string | null {
  if (!skill) return 'OpenClaw finds no skill in it: its SKILL.md lacks a name or a description.'
  return skill.installed?.version === version ? objection(skill) : 'OpenClaw lists another version of it.'
}

/**
 * A sentence on the first difference to the published files; null when there is none or the registry lists no files.
 */
async function differenceFrom(
  { files: published }: SkillRelease,
  files: SandboxFiles,
  { slug }: SkillReference,
  signal: AbortSignal,
): Promise<string | null> {
  if (!published) return null
  let checked = 0
  for (const [path, sha256] of published) {
    if (generated.has(path)) continue
    const content = await contentOf(files, `${folderOf(slug)}/${path}`, maxFileBytes, signal)
    if (!content || hash('sha256', content, 'hex') !== sha256) {
      return `its file ${JSON.stringify(path)} differs from the published one.`
    }
    checked += content.length
    if (checked > maxCheckedBytes) return 'it is too large to be checked.'
  }
  const unpublished = await findUnpublished(files, folderOf(slug), [...published.keys()], signal)
  return unpublished === null ? null : `it contains ${JSON.stringify(unpublished)}, which was not published.`
}

/** The first file, link or folder in `folder` that is neither a published path nor a parent of one. */
async function findUnpublished(
  files: SandboxFiles,
  folder: string,
  published: readonly string[],
  signal: AbortSignal,
): Promise<string | null> {
  const folders = new Set(['.'])
  for (const path of published)
    for (let parent = posix.dirname(path); parent !== '.'; parent = posix.dirname(parent)) folders.add(parent)
  const known = new Set([...published, ...folders, ...generated])
  for (const subfolder of folders) {
    const { entries } = await files.list(`${folder}/${subfolder}`, { maxEntries: known.size }, signal)
    const unpublished = entries.map(({ name }) => posix.join(subfolder, name)).find((path) => !known.has(path))
    if (unpublished !== undefined) return unpublished
  }
  return null
}

/** null when the file does not exist, is no regular file, or is larger than `maxBytes`. */
async function contentOf(files: SandboxFiles, path: string, maxBytes: number, signal: AbortSignal) {
  try {
    const file = await files.read(path, { maxBytes }, signal)
    return file && (await buffer(file.content()))
  } catch (error) {
    if (error instanceof SandboxPathError) return null
    throw error
  }
}

/**
 * Deletes a skill's folder in the workspace and its entry in ClawHub's lock file, from which an update would restore
 * it. Waits until the gateway no longer lists the skill. Links that the agent has created are not followed out of the
 * workspace. A repeated call completes the removal after a crash.
 */
export async function removeSkill(
  gateway: GatewayClient,
  files: SandboxFiles,
  reference: SkillReference,
  signal: AbortSignal,
): Promise<void> {
  await files.remove(folderOf(reference.slug), { recursive: true }, signal)
  await removeFromLock(files, reference, signal)
  await waitForList(gateway, reference, false, signal)
}

async function removeFromLock(files: SandboxFiles, { slug }: SkillReference, signal: AbortSignal): Promise<void> {
  const content = await contentOf(files, lockPath, maxLockBytes, signal)
  const changed = content && lockWithout(slug, content.toString())
  if (changed) await files.write(lockPath, Buffer.from(changed), {}, signal)
}

/** Null when the lock file does not contain the skill, or is malformed, since the agent can write it. */
function lockWithout(slug: string, content: string): string | null {
  try {
    const lock: unknown = JSON.parse(content)
    if (!isObject(lock) || !isObject(lock.skills) || !Object.hasOwn(lock.skills, slug)) return null
    const { [slug]: _removed, ...skills } = lock.skills
    return JSON.stringify({ ...lock, skills }) // not indented: the agent's nesting could make it grow without bound
  } catch {
    return null
  }
}
