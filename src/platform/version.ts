import { readFileSync } from 'node:fs'

const root = new URL('../../', import.meta.url)

function read(path: string): string {
  try {
    return readFileSync(new URL(path, root), 'utf8').trim()
  } catch {
    return ''
  }
}

/** An image has its commit in a file; a checkout has Git's own files. */
function findCommit(): string {
  const head = read('.commit') || read('.git/HEAD')
  const [, branch] = /^ref: (.+)$/.exec(head) ?? []
  if (branch === undefined) return head
  const packed = read('.git/packed-refs').split('\n')
  return read(`.git/${branch}`) || (packed.find((line) => line.endsWith(` ${branch}`)) ?? '')
}

/** The version of Chowder, such as `0.1.0`. */
export const version: string = JSON.parse(read('package.json')).version

/** The first 12 digits of the commit that Chowder was built from; `unknown` without one. */
export const commit: string = /^[0-9a-f]{12}/.exec(findCommit())?.[0] ?? 'unknown'
