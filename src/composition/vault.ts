import type { Db } from '#database/client.ts'
import { readValue, storeOnce, storeValue } from '#database/installation.ts'
import { StartupError } from '#errors/startup-error.ts'
import { dataFolder } from '#platform/data-folder.ts'
import { findSecretKeys, readSecretKeys } from '#platform/secret-key.ts'
import { createVault, type Place, type Vault } from '#platform/secrets.ts'
import type { Config } from '#settings/config.ts'
import type { Startup } from './startup.ts'

/** The name of a sealed value in the table `installation`, which checks the key at a start. */
export const keyCheckName = 'secret-key-check'
const keyCheckPlace: Place = `installation/${keyCheckName}/value`

/**
 * Opens the vault. Throws StartupError when no key is the one that this database was sealed with. The first start
 * accepts any key.
 */
export async function openVault({ config, dataDir }: Pick<Startup, 'config' | 'dataDir'>, db: Db): Promise<Vault> {
  return checked(await findSecretKeys(config.CHOWDER_SECRET_KEY, dataDir), db)
}

/** Opens the vault for a command of the operator. Throws StartupError without a key, or with a wrong one. */
export async function openVaultForOperator(config: Config, db: Db): Promise<Vault> {
  const dataDir = dataFolder(config.CHOWDER_DATA_DIR)
  const keys = await readSecretKeys(config.CHOWDER_SECRET_KEY, dataDir)
  if (keys) return checked(keys, db)
  throw new StartupError(
    `There is no secret key in ${dataDir}. Set CHOWDER_SECRET_KEY or CHOWDER_DATA_DIR as Chowder has them.`,
  )
}

async function checked(keys: readonly Buffer[], db: Db): Promise<Vault> {
  const vault = createVault(keys)
  await storeOnce(db, keyCheckName, sealKeyCheck(vault))
  if (!(await isKeyRight(db, vault))) {
    throw new StartupError(
      'The secret key is not the one that this database was sealed with. Restore the old one from a backup: ' +
        'CHOWDER_SECRET_KEY, or the file secret-key in the data folder.',
    )
  }
  return vault
}

const sealKeyCheck = (vault: Vault) => vault.seal('chowder', keyCheckPlace)

/** Makes the first key of the vault the one that a start needs. */
export const requireFirstKey = (db: Db, vault: Vault) => storeValue(db, keyCheckName, sealKeyCheck(vault))

/** Whether the vault has the key that a start needs. True before the first start. */
export async function isKeyRight(db: Db, vault: Vault): Promise<boolean> {
  const check = await readValue(db, keyCheckName)
  try {
    if (check !== undefined) vault.unseal(check, keyCheckPlace)
    return true
  } catch {
    return false
  }
}
