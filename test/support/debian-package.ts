import { execFile } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { promisify } from 'node:util'

const run = promisify(execFile)

const isThere = (program: string, version: string) =>
  run(program, [version]).then(
    () => true,
    () => false,
  )

/**
 * Whether the program is on PATH, and says its version when it is asked so. As root on Debian and Ubuntu a missing
 * program is installed first.
 */
export async function provideProgram(program: string, debianPackage: string, version = '--version'): Promise<boolean> {
  if (await isThere(program, version)) return true
  const system = await readFile('/etc/os-release', 'utf8').catch(() => '')
  if (process.getuid?.() !== 0 || !/^ID(_LIKE)?=.*(debian|ubuntu)/m.test(system)) return false
  await run('apt-get', ['update'], { timeout: 120_000 }).catch(() => {})
  // Another test may be installing another program.
  const options = ['-o', 'DPkg::Lock::Timeout=120', '-y', '--no-install-recommends']
  await run('apt-get', ['install', ...options, debianPackage], {
    env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' },
    timeout: 300_000,
  })
  return isThere(program, version)
}
