import { execFile } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { promisify } from 'node:util'

const run = promisify(execFile)

const isThere = (program: string) =>
  run(program, ['--version']).then(
    () => true,
    () => false,
  )

/** Whether the program is on PATH. As root on Debian and Ubuntu a missing program is installed first. */
export async function provideProgram(program: string, debianPackage: string): Promise<boolean> {
  if (await isThere(program)) return true
  const system = await readFile('/etc/os-release', 'utf8').catch(() => '')
  if (process.getuid?.() !== 0 || !/^ID(_LIKE)?=.*(debian|ubuntu)/m.test(system)) return false
  await run('apt-get', ['update'], { timeout: 120_000 }).catch(() => {})
  await run('apt-get', ['install', '-y', '--no-install-recommends', debianPackage], {
    env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' },
    timeout: 180_000,
  })
  return isThere(program)
}
