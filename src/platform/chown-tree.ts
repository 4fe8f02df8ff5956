import { lchown, readdir } from 'node:fs/promises'
import { join } from 'node:path'

export interface Owner {
  uid: number
  gid: number
}

/**
 * Gives a tree of root another owner, e.g. one restored from a copy without owners. Follows no link. While the tree
 * belongs to root, no other user can change it.
 */
export async function chownTree(path: string, { uid, gid }: Owner): Promise<void> {
  for (const entry of await readdir(path, { withFileTypes: true })) {
    const child = join(path, entry.name)
    if (entry.isDirectory()) await chownTree(child, { uid, gid })
    else await lchown(child, uid, gid)
  }
  await lchown(path, uid, gid) // last: a crash half-way leaves a tree that still belongs to root
}
