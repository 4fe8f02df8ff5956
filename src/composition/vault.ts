import type { Db } from '#database/client.ts'
import { storeOnce } from '#database/installation.ts'
import { findSecretKey } from '#platform/secret-key.ts'
import { createVault, type Vault } from '#platform/secrets.ts'
import { StartupError } from '#platform/startup-error.ts'
import type { Startup } from './startup.ts'

const place = 'installation/secret-key-check/value'

/**
 * Opens the vault. Throws StartupError when its key is not the one that the secrets of this database were sealed with.
 */
export async function openVault({ config, dataDir }: Startup, db: Db): Promise<Vault> {
  const vault = createVault(await findSecretKey(config.CHOWDER_SECRET_KEY, dataDir))
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
