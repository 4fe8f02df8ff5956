import { execFile } from 'node:child_process'
import { existsSync, rmdirSync } from 'node:fs'
import { chmod, glob, mkdir, readdir, readFile, readlink, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { controlGroupsName } from '#sandbox/local/limits.ts'
import { until } from './until.ts'

const run = promisify(execFile)
const endMs = 20_000
/** The process id has a fixed length: no folder's name is the beginning of another's. */
const name = /^chowder-(\d{7})$/

/**
 * Returns the processes whose working directory, arguments, environment or control group contain `place`: the path of a
 * folder, or the id of a container.
 */
export async function processesIn(place: string): Promise<number[]> {
  const found: number[] = []
  for (const pid of (await readdir('/proc')).map(Number).filter((number) => number > 0)) {
    if (pid === process.pid) continue
    const cwd = await readlink(`/proc/${pid}/cwd`).catch(() => '')
    const read = (name: string) => readFile(`/proc/${pid}/${name}`, 'utf8').catch(() => '')
    const facts = [await read('environ'), await read('cmdline'), await read('cgroup')]
    if (`${cwd}\0`.startsWith(place) || facts.some((text) => text.includes(place))) found.push(pid)
  }
  return found
}

/** Removes the control groups of the data folders in a folder. Returns false while one of them has a process. */
async function removeGroups(folder: string): Promise<boolean> {
  const tests: string[] = []
  for await (const path of glob(`${folder}/{,*/,*/*/}sandboxes`)) {
    tests.push('-o', '-path', `*/${controlGroupsName(dirname(path))}*`)
  }
  if (tests.length === 0 || !existsSync('/sys/fs/cgroup')) return true
  const remove = run('find', ['/sys/fs/cgroup', '-depth', '-type', 'd', '(', ...tests.slice(1), ')', '-delete'])
  return remove.then(
    () => true,
    () => false,
  )
}

/** Kills all processes that use a folder, and removes it with its mounts and the control groups of its agents. */
export async function killAndRemove(folder: string): Promise<void> {
  async function hasEnded(): Promise<boolean> {
    const left = await processesIn(folder)
    for (const pid of left) {
      try {
        process.kill(pid, 'SIGKILL')
      } catch {
        // The process has just ended.
      }
    }
    return left.length === 0 && (await removeGroups(folder))
  }
  await until(`the end of what runs in ${folder}`, hasEnded, endMs)
  const mounts = (await readFile('/proc/self/mounts', 'utf8')).split('\n').map((line) => line.split(' ')[1] ?? '')
  for (const mount of mounts.reverse()) if (mount.startsWith(`${folder}/`)) await run('umount', [mount])
  await rm(folder, { recursive: true, force: true, maxRetries: 5 })
}

/**
 * A global setup of Vitest, the first of each project: gives the run a folder for all temporary files, named after this
 * process, and removes the folders of runs that have ended with everything that still uses them.
 */
export default async function setup(): Promise<void> {
  if (name.test(basename(tmpdir()))) return // made for another project
  for (const entry of await readdir(tmpdir())) {
    const pid = Number(name.exec(entry)?.[1])
    const hasEnded = pid > 0 && (pid === process.pid || !existsSync(`/proc/${pid}`))
    if (hasEnded) await killAndRemove(join(tmpdir(), entry))
  }
  const folder = join(tmpdir(), `chowder-${String(process.pid).padStart(7, '0')}`)
  await mkdir(folder)
  await chmod(folder, 0o711) // databases and agents run as other users
  process.env.TMPDIR = folder
  process.once('exit', () => {
    try {
      rmdirSync(folder)
    } catch {
      // Tests have left something in it: the next run removes it.
    }
  })
}
