import type { Db } from '#database/client.ts'
import { storeOnce } from '#database/installation.ts'
import type { Config } from '#platform/config.ts'
import { dataFolder } from '#platform/data-folder.ts'
import { findSecretKey, readSecretKey } from '#platform/secret-key.ts'
import { createVault, type Vault } from '#platform/secrets.ts'
import { StartupError } from '#platform/startup-error.ts'
import type { Startup } from './startup.ts'

const place = 'installation/secret-key-check/value'

/**
 * Opens the vault. Throws StartupError when its key is not the one that the secrets of this database were sealed with.
 */
export const openVault = async ({ config, dataDir }: Startup, db: Db): Promise<Vault> =>
  checked(createVault(await findSecretKey(config.CHOWDER_SECRET_KEY, dataDir)), db)

/** Opens the vault for a command of the operator, which makes no key. Throws an Error for the operator without one. */
export async function openVaultForOperator(config: Config, db: Db): Promise<Vault> {
  const dataDir = dataFolder(config.CHOWDER_DATA_DIR)
  const key = await readSecretKey(config.CHOWDER_SECRET_KEY, dataDir)
  if (key) return checked(createVault(key), db)
  throw new Error(
    `There is no secret key in ${dataDir}. Set CHOWDER_SECRET_KEY or CHOWDER_DATA_DIR as Chowder has them.`,
  )
}

/** Throws StartupError when this database's secrets were sealed with another key. The first key is right. */
async function checked(vault: Vault, db: Db): Promise<Vault> {
  const sealed = await storeOnce(db, 'secret-key-check', vault.seal('chowder', place))
  try {
    vault.unseal(sealed, place)
  } catch (cause) {
    throw new StartupError(
      'The secret key is not the one that this database was sealed with. ' +
        'Restore the old one from a backup: CHOWDER_SECRET_KEY, or the file secret-key in the data folder.',
      { cause },
    )
  }
  return vault
}
