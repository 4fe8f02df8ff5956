import { expect, test } from 'vitest'
import { writeSystemPrompt } from '#openclaw/system-prompt.ts'
import type { SandboxFiles } from '#sandbox/driver.ts'
import { type MemoryFolder, memoryFiles } from '../support/memory-files.ts'

const soul = 'state/workspace/SOUL.md'
const signal = AbortSignal.timeout(10_000)

/** The files of a folder, whose calls that change something fail from the one of that number on. */
function failing(folder: MemoryFolder, from: number): SandboxFiles {
  const files = memoryFiles(() => folder)
  let changes = 0
  const orFail = async <T>(change: () => Promise<T>): Promise<T> => {
    changes += 1
    if (changes >= from) throw new Error('killed')
    return change()
  }
  return {
    ...files,
    write: (...args) => orFail(() => files.write(...args)),
    remove: (...args) => orFail(() => files.remove(...args)),
  }
}

const prompts = [null, '', 'Be brief.', 'Shout.']
const pairs = prompts.flatMap((stored) => prompts.map((refused) => [stored, refused] as const))

test.each(pairs)(
  'with %j stored, a change to %j that is killed anywhere leaves nothing of itself',
  async (stored, refused) => {
    for (const from of [1, 2, 3]) {
      const folder: MemoryFolder = new Map()
      const whole = memoryFiles(() => folder)
      await writeSystemPrompt(whole, stored, signal)
      await writeSystemPrompt(failing(folder, from), refused, signal).catch(() => {})
      await writeSystemPrompt(whole, stored, signal)
      expect(folder.get(soul)?.content?.toString() ?? null, `killed at ${from}`).toBe(stored)
    }
  },
)
