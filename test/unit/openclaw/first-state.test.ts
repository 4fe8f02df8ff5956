import { execFile } from 'node:child_process'
import { mkdir, mkdtempDisposable, readdir, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { expect, test } from 'vitest'

const run = promisify(execFile)
const program = fileURLToPath(import.meta.resolve('#openclaw/inside/first-state.mjs'))

/** A compile cache with an unreadable first state, and the state folder of a new agent. */
async function makeFolders() {
  const folder = await mkdtempDisposable(join(tmpdir(), 'chowder-first-state-'))
  const [cache, state] = [join(folder.path, 'cache'), join(folder.path, 'agent')]
  const env = { NODE_COMPILE_CACHE: cache }
  const show = ['-p', 'require("node:module").getCompileCacheDir()']
  const own = (await run(process.execPath, show, { env })).stdout.trim()
  await mkdir(own, { recursive: true })
  await writeFile(join(own, 'first-state.sqlite'), 'no database')
  await mkdir(state)
  const start = () => run(process.execPath, [program, state], { env })
  return { state, start, [Symbol.asyncDispose]: () => folder[Symbol.asyncDispose]() }
}

test('a first state that cannot be used leaves the new folder as it was, and says so', async () => {
  await using folders = await makeFolders()
  const { stderr } = await folders.start()
  expect(stderr).toMatch(/^OpenClaw migrates the new state folder itself: .+\n$/)
  expect(await readdir(folders.state)).toEqual([])
})

test.each(['state', 'agents/main/agent/openclaw-agent.sqlite'])('an agent with %s keeps what it has', async (path) => {
  await using folders = await makeFolders()
  await mkdir(join(folders.state, path), { recursive: true })
  expect(await folders.start()).toEqual({ stdout: '', stderr: '' })
  expect(await readdir(folders.state)).toEqual([path.split('/')[0]])
})
