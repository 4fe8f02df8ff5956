import { execFile } from 'node:child_process'
import { promisify } from 'node:util'

const run = promisify(execFile)
const root = `${import.meta.dirname}/../..`

/** The commit that operators upgrade from. Every release changes it to the release before. */
export const previousVersion = 'd48c4b6a0a2faf856d3036838a717c4735206882'

/** Whether this clone has a commit. */
export const isHere = (commit: string): Promise<boolean> =>
  run('git', ['cat-file', '-e', `${commit}^{commit}`], { cwd: root }).then(
    () => true,
    () => false,
  )

/** Puts the files of a commit into a folder; without paths all of them. */
export async function extract(commit: string, folder: string, paths: readonly string[] = []): Promise<void> {
  const archive = `${folder}.tar`
  await run('git', ['archive', '--output', archive, commit, ...paths], { cwd: root })
  await run('tar', ['-xf', archive, '-C', folder])
  await run('rm', [archive])
}
