import type { Db } from '#database/client.ts'
import { readValue, storeOnce } from '#database/installation.ts'
import { steadyFreePort } from '#platform/free-port.ts'
import { newId } from '#platform/ids.ts'
import type { Config } from '#settings/config.ts'

/** Chooses the relay's port once for this database if the setting does not. */
export async function withRelayPort(config: Config, db: Db): Promise<Config> {
  if (config.RELAY_PORT !== 0) return config
  const kept =
    (await readValue(db, 'relay-port')) ?? (await storeOnce(db, 'relay-port', String(await steadyFreePort())))
  return { ...config, RELAY_PORT: Number(kept) }
}

/** The name of this installation, by which a relay recognizes another relay of the same installation. */
export const installationId = (db: Db): Promise<string> => storeOnce(db, 'installation-id', newId())
