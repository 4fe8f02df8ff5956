import { defaultRelease, openclawVersion } from '#openclaw/releases.ts'
import type { AnyDriver } from './sandboxes.ts'
import type { Startup } from './startup.ts'

/** The text that greets a newcomer once Chowder listens: addresses, places, and the next command. */
export function welcome({ config, dataDir }: Startup, url: string, { isolation, stopAll }: AnyDriver): string {
  const database = config.DATABASE_URL ? 'DATABASE_URL' : 'embedded PostgreSQL'
  const queue = config.REDIS_URL ? 'REDIS_URL' : 'in PostgreSQL'
  const stop = stopAll
    ? 'Ctrl-C stops Chowder and the agents; the next start brings them back.'
    : 'Ctrl-C stops Chowder alone; the agents go on running, and the next start adopts them.'
  return `
  Chowder is running.

  API       ${url}
  Docs      ${url}/docs
  Data      ${dataDir} (database: ${database}; queue: ${queue})
  Agents    OpenClaw ${openclawVersion(defaultRelease)}. ${isolation}
  Stop      ${stop}

  Next, create an organization and keep the key in the answer:

  curl -s ${url}/v1/organization/signup -H 'content-type: application/json' -d '{"name": "Acme"}'

`
}
