// npm run test:previous [-- FILE…]
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { cp, mkdir, mkdtemp, readFile, rm, symlink } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { extract, isHere, previousVersion } from '../support/previous-version.ts'

const run = promisify(execFile)
const root = join(import.meta.dirname, '../..')

/** Tests of what the previous version reads and writes while the new one is rolled out beside it. */
const usual = ['/instances.test', '/sessions.test', '/response-store.test', '/idempotency.test']

const contents = (folder: string, name: string) => readFile(join(folder, name), 'utf8')

/** Puts the previous version into `folder`, with this version's migrations instead of its own. */
async function checkOut(folder: string): Promise<void> {
  await mkdir(folder)
  await extract(previousVersion, folder)
  await rm(join(folder, 'migrations'), { recursive: true })
  await cp(join(root, 'migrations'), join(folder, 'migrations'), { recursive: true })
  const lock = 'package-lock.json'
  if ((await contents(folder, lock)) === (await contents(root, lock))) {
    await symlink(join(root, 'node_modules'), join(folder, 'node_modules'))
  } else {
    await run('npm', ['ci', '--strict-allow-scripts', '--prefer-offline'], { cwd: folder })
  }
}

/**
 * Runs integration tests of the previous version on the schema of this one: while an upgrade is rolled out, and after
 * it is rolled back, the previous version works on the new schema.
 */
async function main(): Promise<void> {
  if (!(await isHere(previousVersion))) {
    process.stdout.write(`Not run: this clone has no history, so it lacks the previous version ${previousVersion}.\n`)
    return
  }
  const folder = await mkdtemp(join(tmpdir(), 'chowder-previous-'))
  try {
    const checkout = join(folder, 'checkout')
    await checkOut(checkout)
    const files = process.argv.slice(2)
    // Its tests are not mended any more: one that fails by chance does not fail each time.
    const vitest = [
      'node_modules/vitest/vitest.mjs',
      'run',
      '--project',
      'integration',
      '--tags-filter=!long',
      '--retry=2',
    ]
    const child = spawn(process.execPath, [...vitest, ...(files.length > 0 ? files : usual)], {
      cwd: checkout,
      stdio: 'inherit',
    })
    const [code] = (await once(child, 'close')) as [number | null]
    process.exitCode = code ?? 1
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

await main()
