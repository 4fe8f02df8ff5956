import { expect, test } from 'vitest'
import { identityOf, writeDocuments } from '#openclaw/config/workspace-documents.ts'
import type { SandboxFiles } from '#sandbox/driver.ts'
import { type MemoryFolder, memoryFiles } from '../../support/memory-files.ts'

const soul = 'state/workspace/SOUL.md'
const identity = 'state/workspace/IDENTITY.md'
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

const named = (name: string, soul: string | null) => ({ 'SOUL.md': soul, 'IDENTITY.md': identityOf(name) })

const prompts = [null, '', 'Be brief.', 'Shout.']
const pairs = prompts.flatMap((stored) => prompts.map((refused) => [stored, refused] as const))

test.each(pairs)(
  'with %j stored, a change to %j that is killed anywhere leaves nothing of itself',
  async (stored, refused) => {
    for (const from of [1, 2, 3, 4]) {
      const folder: MemoryFolder = new Map()
      const whole = memoryFiles(() => folder)
      await writeDocuments(whole, named('Ada', stored), signal)
      await writeDocuments(failing(folder, from), named('Eve', refused), signal).catch(() => {})
      await writeDocuments(whole, named('Ada', stored), signal)
      expect(folder.get(soul)?.content?.toString() ?? null, `killed at ${from}`).toBe(stored)
      expect(folder.get(identity)?.content?.toString(), `killed at ${from}`).toContain('- **Name:** Ada\n')
    }
  },
)

test('a document that an agent has edited stays when another one changes', async () => {
  const folder: MemoryFolder = new Map()
  const files = memoryFiles(() => folder)
  await writeDocuments(files, named('Ada', 'Be brief.'), signal)
  await files.write(soul, Buffer.from('I learned.'), { mode: 0o600 }, signal)
  await writeDocuments(files, named('Eve', 'Be brief.'), signal)
  expect([soul, identity].map((path) => folder.get(path)?.content?.toString())).toEqual([
    'I learned.',
    identityOf('Eve'),
  ])
})
