import { createHash } from 'node:crypto'
import { text } from 'node:stream/consumers'
import { workspacePath } from '#openclaw/inside/launch.ts'
import { parseObject } from '#openclaw/json.ts'
import type { SandboxFiles } from '#sandbox/driver.ts'

/** The texts of files in the workspace that OpenClaw puts into the system prompt; null means no file. */
export interface WorkspaceDocuments {
  'SOUL.md': string | null
  'IDENTITY.md': string | null
}

/** The name of the agent, in OpenClaw's format: see its template of the file. */
export const identityOf = (name: string): string => `# IDENTITY.md - Who Am I?\n\n- **Name:** ${name}\n`

/** The digests are in the state folder, so that they are lost and restored together with the documents. */
const digestsPath = 'state/workspace-documents.json'
const maxDigestsBytes = 1024
/** Marks an unfinished write; not a valid digest. */
const unfinished = '-'
const none = ''

/**
 * Writes each document whose text differs from the last written one, and deletes the file of a text that is now null.
 * Keeps a document with an unchanged text, because agents edit these files. After a crash half-way, the next call
 * writes its texts in any case.
 */
export async function writeDocuments(
  files: SandboxFiles,
  documents: WorkspaceDocuments,
  signal: AbortSignal,
): Promise<void> {
  const stored = await files.read(digestsPath, { maxBytes: maxDigestsBytes }, signal)
  const written = parseObject(stored && (await text(stored.content()))) ?? {}
  const digests = Object.fromEntries(Object.entries(documents).map(([name, content]) => [name, digestOf(content)]))
  const changed = Object.entries(documents).filter(([name]) => (written[name] ?? none) !== digests[name])
  if (changed.length === 0) return
  const writeDigests = (of: Record<string, unknown>) =>
    files.write(digestsPath, Buffer.from(JSON.stringify(of)), { mode: 0o600 }, signal)
  await writeDigests({ ...digests, ...Object.fromEntries(changed.map(([name]) => [name, unfinished])) })
  for (const [name, content] of changed) {
    const path = `${workspacePath}/${name}`
    if (content === null) await files.remove(path, { recursive: true }, signal)
    else await files.write(path, Buffer.from(content), { mode: 0o600 }, signal)
  }
  await writeDigests(digests)
}

const digestOf = (content: string | null): string =>
  content === null ? none : createHash('sha256').update(content).digest('hex')
