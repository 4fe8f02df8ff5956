import type { Db } from '#database/client.ts'
import { readValue, storeOnce } from '#database/installation.ts'
import { steadyFreePort } from '#platform/free-port.ts'
import { newId } from '#platform/ids.ts'
import type { Config } from '#settings/config.ts'

/** Chooses the port of the relay once for this database when the setting leaves it to Chowder. */
export async function withRelayPort(config: Config, db: Db): Promise<Config> {
  if (config.RELAY_PORT !== 0) return config
  const kept =
    (await readValue(db, 'relay-port')) ?? (await storeOnce(db, 'relay-port', String(await steadyFreePort())))
  return { ...config, RELAY_PORT: Number(kept) }
}

/** The name of this installation, by which a relay knows another one of the same. */
export const installationId = (db: Db): Promise<string> => storeOnce(db, 'installation-id', newId())
