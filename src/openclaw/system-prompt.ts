import { createHash } from 'node:crypto'
import { text } from 'node:stream/consumers'
import type { SandboxFiles } from '#sandbox/driver.ts'
import { soulPath } from './launch.ts'

/** The digest is in the state folder, so that it is lost and restored together with the prompt. */
const digestPath = 'state/system-prompt.sha256'
const digestBytes = 64
/** Marks an unfinished write. It is no digest of a prompt. */
const unfinished = '-'

/**
 * Writes the system prompt to `SOUL.md` when it differs from the prompt last written. Otherwise the file stays, because
 * agents edit it. `null` deletes the file. After a crash half-way, the next call writes its prompt in any case.
 */
export async function writeSystemPrompt(
  files: SandboxFiles,
  prompt: string | null,
  signal: AbortSignal,
): Promise<void> {
  const wanted = prompt === null ? '' : createHash('sha256').update(prompt).digest('hex')
  const digest = await files.read(digestPath, { maxBytes: digestBytes }, signal)
  const written = digest ? await text(digest.content()) : ''
  if (written === wanted) return
  const writeDigest = (digest: string) => files.write(digestPath, Buffer.from(digest), { mode: 0o600 }, signal)
  await writeDigest(unfinished)
  if (prompt === null) await files.remove(soulPath, { recursive: true }, signal)
  else await files.write(soulPath, Buffer.from(prompt), { mode: 0o600 }, signal)
  await writeDigest(wanted)
}
