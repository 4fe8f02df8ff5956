import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { textMadeOnce } from './data-folder.ts'

const keyBytes = 32

/**
 * The key that seals stored secrets: the given one in base64, else the one in the data folder, which is made on the
 * first start, readable for its owner alone.
 */
export async function findSecretKey(given: string | undefined, dataDir: string): Promise<Buffer> {
  const path = join(dataDir, 'secret-key')
  const text = given ?? (await textMadeOnce(path, () => randomBytes(keyBytes).toString('base64')))
  const key = Buffer.from(text, 'base64')
  if (key.length !== keyBytes)
    throw new Error(`${path} does not hold ${keyBytes} bytes in base64: restore it from a backup`)
  return key
}
