import { createHash } from 'node:crypto'
import { text } from 'node:stream/consumers'
import type { SandboxFiles } from '#sandbox/driver.ts'
import { soulPath } from './launch.ts'

/** Beside the state, so that a new file system or a restored one brings it along. */
const digestPath = 'state/system-prompt.sha256'
const digestBytes = 64
/** No prompt's digest. */
const beingWritten = '-'

/**
 * Makes `SOUL.md` say the system prompt, only when the prompt differs from the one last written: agents edit that
 * file, and what they learned is theirs. Removing the prompt removes the file. After a crash half-way the next call
 * writes it, whichever prompt that one brings.
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
  const note = (word: string) => files.write(digestPath, Buffer.from(word), { mode: 0o600 }, signal)
  await note(beingWritten)
  if (prompt === null) await files.remove(soulPath, { recursive: true }, signal)
  else await files.write(soulPath, Buffer.from(prompt), { mode: 0o600 }, signal)
  await note(wanted)
}
