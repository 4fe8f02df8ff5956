import { randomBytes } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { StartupError } from '#errors/startup-error.ts'
import { textMadeOnce } from './data-folder.ts'

const keyBytes = 32
/** Maximum keys: the sealing one, and one more to unseal. */
const maxKeys = 2
const keyFormat = /^[A-Za-z0-9+/]{43}=$/

const keyFileIn = (dataDir: string) => join(dataDir, 'secret-key')

/** Throws StartupError, which begins with `where`, for anything but one key or two. */
function decodeKeys(text: string, where: string): Buffer[] {
  const words = [...new Set(text.split(/[\s,]+/).filter((word) => word !== ''))]
  if (words.length > 0 && words.length <= maxKeys && words.every((word) => keyFormat.test(word)))
    return words.map((word) => Buffer.from(word, 'base64'))
  throw new StartupError(`${where} one secret key, or two: 32 bytes in base64 each`)
}

async function readKeyFile(dataDir: string): Promise<Buffer[]> {
  const file = keyFileIn(dataDir)
  return decodeKeys(await readFile(file, 'utf8'), `Restore ${file} from a backup: it does not hold`)
}

/**
 * The keys of stored secrets, of 32 bytes each, the sealing one first: those of the setting, otherwise those of the
 * file `secret-key` in the data folder, which the first start creates for its owner alone. Throws StartupError for
 * invalid keys.
 */
export async function findSecretKeys(setting: string | undefined, dataDir: string): Promise<Buffer[]> {
  if (setting !== undefined) return decodeKeys(setting, 'CHOWDER_SECRET_KEY does not hold')
  await textMadeOnce(keyFileIn(dataDir), () => randomBytes(keyBytes).toString('base64'))
  return readKeyFile(dataDir)
}

/** Reads these keys and creates none: null when the data folder has none yet. */
export async function readSecretKeys(setting: string | undefined, dataDir: string): Promise<Buffer[] | null> {
  if (setting !== undefined) return findSecretKeys(setting, dataDir)
  return readKeyFile(dataDir).catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return null
    throw error
  })
}
