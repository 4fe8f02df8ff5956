import { randomBytes } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { textMadeOnce } from './data-folder.ts'

const keyBytes = 32
const pathIn = (dataDir: string) => join(dataDir, 'secret-key')

function decode(text: string, dataDir: string): Buffer {
  const key = Buffer.from(text, 'base64')
  if (key.length !== keyBytes)
    throw new Error(`${pathIn(dataDir)} does not hold ${keyBytes} bytes in base64: restore it from a backup`)
  return key
}

/**
 * The key that seals stored secrets: the given one in base64, else that of the data folder, which the first start makes
 * and only its owner can read.
 */
export const findSecretKey = async (given: string | undefined, dataDir: string): Promise<Buffer> =>
  decode(given ?? (await textMadeOnce(pathIn(dataDir), () => randomBytes(keyBytes).toString('base64'))), dataDir)

/** The same key; null when the data folder has none yet. */
export async function readSecretKey(given: string | undefined, dataDir: string): Promise<Buffer | null> {
  const text =
    given ??
    (await readFile(pathIn(dataDir), 'utf8').catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return null
      throw error
    }))
  return text === null ? null : decode(text, dataDir)
}
