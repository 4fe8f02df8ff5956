import { eq, inArray } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { readValue, storeOnce, storeValue } from '#database/installation.ts'
import { installation } from '#database/schema.ts'
import { dataFolder } from '#platform/data-folder.ts'
import { findSecretKeys, readSecretKeys, rereadKeys, type SecretKeys } from '#platform/secret-key.ts'
import {
  createVault,
  keyIdOf,
  type Place,
  type SealFormat,
  sealedPrefix,
  type Vault,
  type VaultWithKeys,
} from '#platform/secrets.ts'
import { StartupError } from '#platform/startup-error.ts'
import type { Config } from '#settings/config.ts'
import type { Startup } from './startup.ts'

const checkName = 'secret-key-check'
/** There while a rotation runs: until it has ended, both keys are needed. */
const formerCheckName = 'secret-key-check.former'

export const keyCheckPlace: Place = `installation/${checkName}/value`

/** Whether a value of the installation is one of those that tell whether the keys are right. */
export const isKeyCheck = (name: string): boolean => name === checkName || name === formerCheckName

/** The values that tell whether the keys are right: one, or two while a rotation runs. None before the first start. */
export const keyChecks = (db: Db) =>
  db
    .select()
    .from(installation)
    .where(inArray(installation.name, [checkName, formerCheckName]))

export interface OpenVault {
  vault: Vault
  /**
   * Reads the keys again if they are in a file. Throws when that does not hold those that the database needs, and goes
   * on with those from before.
   */
  reread(): Promise<void>
}

/**
 * Opens the vault. Throws StartupError when its keys are not those that the secrets of this database were sealed with.
 */
export async function openVault({ config, dataDir, log }: Startup, db: Db): Promise<OpenVault> {
  const { keys, file } = await findSecretKeys(config, dataDir)
  const vault = await checked(keys, db)
  let format = await formatOf(keys, db)
  vault.use(keys, format)

  async function reread(): Promise<void> {
    const next = file === null ? keys : await rereadKeys(file)
    const hasChanged = next.map(keyIdOf).join() !== vault.keyIds.join()
    if (!hasChanged && (format === 'v2' || (await formatOf(next, db)) === 'v1')) return
    if (hasChanged) await requireKeys(createVault(next), db)
    format = 'v2'
    vault.use(next)
    if (hasChanged) log.info({ keyIds: vault.keyIds }, 'the secret keys have changed: the first one seals')
  }
  return { vault, reread }
}

/**
 * A database that an earlier version has made is sealed as that version reads it, until there is a second key or a
 * rotation begins: while the versions are exchanged both are at work, and the earlier one may be started again.
 */
async function formatOf(keys: readonly Buffer[], db: Db): Promise<SealFormat> {
  const check = await readValue(db, checkName)
  return keys.length === 1 && check?.startsWith('v1.') ? 'v1' : 'v2'
}

/** The keys of a command of the operator, which makes none. Throws an Error for the operator without one. */
export async function secretKeysForOperator(config: Config): Promise<SecretKeys> {
  const dataDir = dataFolder(config.CHOWDER_DATA_DIR)
  const found = await readSecretKeys(config, dataDir)
  if (found) return found
  throw new Error(
    `There is no secret key in ${dataDir}. Set CHOWDER_SECRET_KEY or CHOWDER_DATA_DIR as Chowder has them.`,
  )
}

/** Opens the vault for a command of the operator. Throws an Error for the operator without a key, or with a wrong one. */
export async function openVaultForOperator(config: Config, db: Db): Promise<Vault> {
  const { keys } = await secretKeysForOperator(config)
  const vault = await checked(keys, db)
  vault.use(keys, await formatOf(keys, db))
  return vault
}

/**
 * Creates the vault of these keys. Throws StartupError when this database's secrets were sealed with another key. The
 * first key of all is right.
 */
async function checked(keys: readonly Buffer[], db: Db): Promise<VaultWithKeys> {
  const vault = createVault(keys)
  await storeOnce(db, checkName, vault.seal('chowder', keyCheckPlace))
  await requireKeys(vault, db)
  return vault
}

/** Throws StartupError when a key is missing that secrets of this database are sealed with. */
export async function requireKeys(vault: Vault, db: Db): Promise<void> {
  const checks = await keyChecks(db)
  try {
    for (const { value } of checks) vault.unseal(value, keyCheckPlace)
  } catch (cause) {
    throw new StartupError(checks.length > 1 ? texts.needsBothKeys : texts.wrongKey, { cause })
  }
}

const texts = {
  wrongKey:
    'The secret key is not the one that this database was sealed with. Restore the old one from a backup: ' +
    'CHOWDER_SECRET_KEY, the output of CHOWDER_SECRET_KEY_COMMAND, or the file secret-key in the data folder.',
  needsBothKeys:
    'The secrets of this database are sealed with two keys, because a rotation of the secret key has not ended. Give ' +
    'both, the new one first: in CHOWDER_SECRET_KEY, by CHOWDER_SECRET_KEY_COMMAND, or in the file secret-key in the ' +
    'data folder. Then run npm run admin -- rotate-secret-key to its end.',
}

/**
 * Whether a rotation has begun and not ended, and which of the keys a start needs: the new one while it runs. Throws
 * StartupError when a key is missing.
 */
export async function rotationState(db: Db, keys: readonly Buffer[]): Promise<{ isRunning: boolean; key: Buffer }> {
  await requireKeys(createVault(keys), db)
  const checks = await keyChecks(db)
  const current = checks.find(({ name }) => name === checkName)
  const key = keys.find((one) => current && canOpen(createVault(one), current.value)) ?? keys[0]
  if (!key) throw new Error(texts.wrongKey)
  return { isRunning: checks.length > 1, key }
}

const canOpen = (vault: Vault, check: string): boolean => {
  try {
    return vault.unseal(check, keyCheckPlace) !== ''
  } catch {
    return false
  }
}

/**
 * From now on a start needs the first key of the vault, beside the one that it needed before. Does nothing when the
 * first key is the one already.
 */
export async function beginRotation(db: Db, vault: Vault): Promise<void> {
  await db.transaction(async (tx) => {
    const [check] = await tx.select().from(installation).where(eq(installation.name, checkName)).for('update')
    if (!check || check.value.startsWith(sealedPrefix(vault.keyIds[0]))) return
    await storeValue(tx, formerCheckName, check.value)
    await storeValue(tx, checkName, vault.seal(vault.unseal(check.value, keyCheckPlace), keyCheckPlace))
  })
}

/** From now on a start needs the first key alone. */
export const endRotation = (db: Db) => db.delete(installation).where(eq(installation.name, formerCheckName))
