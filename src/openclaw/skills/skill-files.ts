import { hash } from 'node:crypto'
import { posix } from 'node:path'
import { buffer } from 'node:stream/consumers'
import { workspacePath } from '#openclaw/inside/launch.ts'
import { isObject } from '#openclaw/json.ts'
import { type SandboxFiles, SandboxPathError } from '#sandbox/driver.ts'
import type { SkillRelease } from './clawhub.ts'
import type { SkillReference } from './skill-reference.ts'

const maxFileBytes = 16 * 1024 * 1024
const maxCheckedBytes = 64 * 1024 * 1024
const maxLockBytes = 4 * 1024 * 1024
const lockPath = `${workspacePath}/.clawhub/lock.json`
/**
 * Files that the registry adds to each download, or replaces in it, and files that the gateway adds to each install.
 */
const generated = new Set(['skill-card.md', '_meta.json', '.clawhub'])

const folderOf = (slug: string) => `${workspacePath}/skills/${slug}`

/**
 * A sentence on the first difference to the published files; null when there is none or the registry lists no files.
 */
export async function differenceFrom(
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

/** Deletes a skill's folder and its entry in ClawHub's lock file. Both steps can be repeated. */
export async function deleteSkillFiles(
  files: SandboxFiles,
  { slug }: SkillReference,
  signal: AbortSignal,
): Promise<void> {
  await files.remove(folderOf(slug), { recursive: true }, signal)
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
