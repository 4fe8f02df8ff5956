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

/** A skill as a running gateway sees it. All texts may be the agent's or a publisher's own. */
export interface GatewaySkill {
  /** Under this name it is configured. */
  key: string
  description: string
  /** `openclaw` brings it along; `workspace` is one that the agent, or a person, wrote there. */
  source: 'clawhub' | 'openclaw' | 'workspace'
  /** Its folder, as a path in the workspace; null when it is elsewhere. */
  path: string | null
  enabled: boolean
  /** Enabled, and everything it needs is there. */
  ready: boolean
  missing: { env: string[]; bins: string[] }
  /** As the gateway noted it when it installed the skill. */
  installed: { reference: SkillReference; version: string; digest: string | null } | null
}

const statusTimeoutMs = 15_000
const installTimeoutMs = 60_000
/** Seen: what was installed is listed at once, what was removed is gone from the list after 0.3 s. */
const noticeMs = 5000
const pauseMs = 100
const maxListed = 1000
const maxNameCharacters = 256
const maxDescriptionCharacters = 2000
const maxFileBytes = 16 * 1024 * 1024
const maxCheckedBytes = 64 * 1024 * 1024
const maxLockBytes = 4 * 1024 * 1024
const shownCharacters = 500
const maxOutputCharacters = 4000
const lockPath = `${workspacePath}/.clawhub/lock.json`
/** What the registry adds to each download, in place of a published one too, and the gateway to each install. */
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

/** Every skill that a running gateway has found, its own and the workspace's; none under a name beyond 256 characters. */
export async function readSkills(gateway: GatewayClient): Promise<GatewaySkill[]> {
  const answer = await gateway.call('skills.status', {}, { timeoutMs: statusTimeoutMs })
  const { skills, workspaceDir } = isObject(answer) ? answer : {}
  if (!Array.isArray(skills)) throw new GatewayRefusal('UNREADABLE', 'the gateway does not show its skills')
  return skills
    .filter(isObject)
    .slice(0, maxListed)
    .flatMap((raw) => toSkill(raw, workspaceDir))
}

/** What a running gateway has found in the folder where a skill belongs, whoever put it there. */
export const skillIn = (skills: readonly GatewaySkill[], { slug }: SkillReference): GatewaySkill | undefined =>
  skills.find(({ path }) => path === `/skills/${slug}`)

/** Waits until the gateway has, or has no longer, a skill in a folder, and answers what it has then. */
async function noticed(
  gateway: GatewayClient,
  reference: SkillReference,
  wanted: boolean,
  signal: AbortSignal,
): Promise<GatewaySkill[]> {
  for (const deadline = performance.now() + noticeMs; ; await sleep(pauseMs, undefined, { signal })) {
    const skills = await readSkills(gateway)
    if ((skillIn(skills, reference) !== undefined) === wanted || performance.now() > deadline) return skills
  }
}

/** Says in a sentence why an installed skill cannot stay; null when it can. `all` are the gateway's skills then. */
export type Objection = (skill: GatewaySkill, all: readonly GatewaySkill[]) => string | null

/**
 * Lets the gateway download and install one version, and makes sure that its files are the published ones, all of them,
 * no others, and byte for byte, unless the registry lists none: the gateway itself does not compare them. With `replace` it takes the place of what is in its folder. Throws
 * AppError `invalid` when the gateway refuses, or when what came is not what was published, not usable or objected to:
 * it is removed then. A crash half-way leaves it in the workspace; done again with `replace`, it is checked anew.
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
      throw error instanceof GatewayRefusal ? refusedBy(error, slug) : error
    })
  const changed = await differenceFrom(release, files, reference, signal)
  const all = changed === null ? await noticed(gateway, reference, true, signal) : []
  const skill = skillIn(all, reference)
  const fault = changed ?? faultOf(skill, release, (found) => objection(found, all))
  if (fault !== null || !skill) {
    await removeSkill(gateway, files, reference, signal)
    const also = replace ? ' What was in its place is removed with it.' : ''
    throw new AppError('invalid', `${slug} ${release.version} is not installed: ${fault}${also}`)
  }
  return { skill, output: outputOf(answer) }
}

function refusedBy(cause: GatewayRefusal, slug: string): AppError {
  if (cause.message.includes('temporarily unavailable')) {
    return new AppError('gateway_unreachable', 'The skill registry does not answer OpenClaw. Try again later.', {
      cause,
    })
  }
  const said = cause.message.replaceAll(/\/\S*\/workspace\//g, '').slice(0, shownCharacters)
  return new AppError('invalid', `OpenClaw did not install ${slug}: ${said}`, { cause })
}

function outputOf(answer: unknown): string {
  const { message, warning } = isObject(answer) ? answer : {}
  const said = [message, warning].filter((text) => typeof text === 'string')
  return said.join('\n').slice(0, maxOutputCharacters)
}

function faultOf(
  skill: GatewaySkill | undefined,
  { version }: SkillRelease,
  objection: (skill: GatewaySkill) => string | null,
): string | null {
  if (!skill) return 'OpenClaw finds no skill in it, its SKILL.md lacks a name or a description.'
  return skill.installed?.version === version ? objection(skill) : 'OpenClaw shows another version in its place.'
}

/** What is wrong with the files in the workspace; null when they are the published ones, or nothing is known of those. */
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
      return `its file ${JSON.stringify(path)} is not the one that was published.`
    }
    checked += content.length
    if (checked > maxCheckedBytes) return 'it is too large to be checked.'
  }
  const stranger = await unpublishedIn(files, folderOf(slug), [...published.keys()], signal)
  return stranger === null ? null : `it holds ${JSON.stringify(stranger)}, which was not published.`
}

/** The first file, link or folder of a folder that is none of the published paths, nor on the way to one. */
async function unpublishedIn(
  files: SandboxFiles,
  folder: string,
  published: readonly string[],
  signal: AbortSignal,
): Promise<string | null> {
  const folders = new Set(['.'])
  for (const path of published) for (let up = posix.dirname(path); up !== '.'; up = posix.dirname(up)) folders.add(up)
  const known = new Set([...published, ...folders, ...generated])
  for (const below of folders) {
    const { entries } = await files.list(`${folder}/${below}`, { maxEntries: known.size }, signal)
    const stranger = entries.map(({ name }) => posix.join(below, name)).find((path) => !known.has(path))
    if (stranger !== undefined) return stranger
  }
  return null
}

/** null when there is no such file, or no plain one, or more in it. */
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
 * Removes a skill's folder from the workspace, and from the list of what an update would bring back, and waits until
 * the gateway has noticed. Nothing outside of the workspace is touched, whatever the agent has put there. Done again, or
 * after a crash, it finishes.
 */
export async function removeSkill(
  gateway: GatewayClient,
  files: SandboxFiles,
  reference: SkillReference,
  signal: AbortSignal,
): Promise<void> {
  await files.remove(folderOf(reference.slug), { recursive: true }, signal)
  await unlist(files, reference, signal)
  await noticed(gateway, reference, false, signal)
}

async function unlist(files: SandboxFiles, { slug }: SkillReference, signal: AbortSignal): Promise<void> {
  const content = await contentOf(files, lockPath, maxLockBytes, signal)
  const left = content && listWithout(slug, content.toString())
  if (left) await files.write(lockPath, Buffer.from(left), {}, signal)
}

/** Null when the skill is not on it. The list is the agent's to spoil: one that cannot be read has nothing to take out. */
function listWithout(slug: string, list: string): string | null {
  try {
    const lock: unknown = JSON.parse(list)
    if (!isObject(lock) || !isObject(lock.skills) || !Object.hasOwn(lock.skills, slug)) return null
    const { [slug]: _removed, ...skills } = lock.skills
    return JSON.stringify({ ...lock, skills }) // indented, deep nesting would grow without bound
  } catch {
    return null
  }
}
