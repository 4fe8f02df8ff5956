import type { Config } from '#platform/config.ts'
import { allowedHosts, isHostUndecided } from '#platform/reach.ts'
import type { Check } from './finding.ts'

/** What the settings say of who may call, in words. */
export function describeAccess(config: Config): string {
  const hosts = allowedHosts(config)
  return `the API answers to ${hosts ? [...hosts].join(', ') : 'any host'}`
}

/** A5: somebody has decided which hosts an API answers to that others can reach. */
export const undecidedHosts: Check = async function* ({ config }) {
  if (!isHostUndecided(config)) return
  yield {
    area: 'access',
    what: 'The API listens on an address that others can reach, and answers requests that are addressed to any host.',
    whatToDo:
      'Set CHOWDER_PUBLIC_URL, or name its hosts in CHOWDER_ALLOWED_HOSTS. CHOWDER_ALLOWED_HOSTS=* says that any is right.',
  }
}
