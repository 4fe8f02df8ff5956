import { signupTokenName, signupTokenPlace } from '#api/organization/signup-token.ts'
import { readValue } from '#database/installation.ts'
import { countOrganizations } from '#instances/warm-pool.ts'
import type { Config } from '#settings/config.ts'
import { allowedHosts, isHostUndecided, type SignupMode, signupMode } from '#settings/exposure.ts'
import { type Check, inEachRegion } from './finding.ts'
import { canUnseal } from './secrets.ts'

const signupInWords: Record<SignupMode, string> = {
  open: 'anybody can sign up',
  token: 'sign-up requires the token',
  closed: 'nobody can sign up',
}

/** The access settings in words. */
export function describeAccess(config: Config): string {
  const hosts = allowedHosts(config)
  const answers = `the API answers to ${hosts ? [...hosts].join(', ') : 'any host'}`
  return `${answers}; ${signupInWords[signupMode(config)]}`
}

/** A5: the operator has decided which hosts a reachable API answers to. */
export const undecidedHosts: Check = async function* ({ config }) {
  if (!isHostUndecided(config)) return
  yield {
    area: 'access',
    what: 'The API listens on an address that others can reach, and answers requests that are addressed to any host.',
    whatToDo:
      'Set CHOWDER_PUBLIC_URL, or name its hosts in CHOWDER_ALLOWED_HOSTS. ' +
      'CHOWDER_ALLOWED_HOSTS=* says that any is right.',
  }
}

/** I7: the sign-up token is sealed, and can be unsealed. */
export const unreadableSignupToken: Check = async function* ({ db, vault }) {
  const sealed = await readValue(db, signupTokenName)
  if (!vault || sealed === undefined || canUnseal(vault, sealed, signupTokenPlace)) return
  yield {
    area: 'access',
    what: 'The token of sign-up cannot be unsealed: it was sealed with another key, or altered.',
    whatToDo: 'Make another one: npm run admin -- signup-token --new.',
  }
}

/**
 * Reports agents that can read the files of Chowder's user, or that share its limits with those of another organization,
 * unless the operator has accepted that.
 */
export const exposedAgents = inEachRegion(async function* ({ db, sandboxes }) {
  const isShared = async () => (await countOrganizations(db)) > 1
  if (!sandboxes.isExposed && !(sandboxes.isForOneOrganization && (await isShared()))) return
  yield {
    area: 'access',
    what: sandboxes.isolation,
    whatToDo: sandboxes.isExposed
      ? 'Let this machine build jails, run Chowder as root, or use SANDBOX_DRIVER=docker. LOCAL_ISOLATION=none accepts it.'
      : 'Run Chowder as root, or use SANDBOX_DRIVER=docker. LOCAL_ISOLATION=jail accepts it.',
  }
})
