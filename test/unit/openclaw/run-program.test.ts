import { spawn } from 'node:child_process'
import { access, mkdtempDisposable, readFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { runProgram } from '#openclaw/release/run-program.ts'
import { until } from '../../support/until.ts'

const isAlive = (pid: number) =>
  access(`/proc/${pid}`).then(
    () => true,
    () => false,
  )

test('a program ends with the process that runs it, also when that is killed', async () => {
  await using folder = await mkdtempDisposable(join(tmpdir(), 'chowder-program-'))
  const file = join(folder.path, 'pid')
  const source = `
    import { runProgram } from ${JSON.stringify(import.meta.resolve('#openclaw/release/run-program.ts'))}
    const args = ['-c', ${JSON.stringify(`echo $$ >${file}; exec sleep 60`)}]
    await runProgram('sh', args, new AbortController().signal)`
  const parent = spawn(process.execPath, ['--input-type=module', '-e', source], {
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  const pid = await until('the program to start', async () => Number(await readFile(file, 'utf8').catch(() => '')))
  expect(await isAlive(pid)).toBe(true)
  parent.kill('SIGKILL')
  await until('the program to end', async () => !(await isAlive(pid)))
})

test('a program that does not exist is an error that names it', async () => {
  await expect(runProgram('no-such-program', [], new AbortController().signal)).rejects.toThrow('no-such-program')
})
