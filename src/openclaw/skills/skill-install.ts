import { AppError } from '#errors/app-error.ts'
import type { GatewayClient } from '#openclaw/gateway/gateway.ts'
import { GatewayRefusal } from '#openclaw/gateway/gateway-errors.ts'
import { isObject } from '#openclaw/json.ts'
import type { Mask } from '#platform/mask.ts'
import type { SandboxFiles } from '#sandbox/driver.ts'
import type { SkillRelease } from './clawhub.ts'
import { deleteSkillFiles, differenceFrom } from './skill-files.ts'
import { referenceText, type SkillReference } from './skill-reference.ts'
import { type GatewaySkill, skillIn, waitForList } from './skills.ts'

const installTimeoutMs = 60_000
const shownCharacters = 500
/** Maximum length of a message that is searched for paths: the search takes quadratic time. */
const searchedCharacters = 1000
const maxOutputCharacters = 4000

/**
 * Returns a sentence on why an installed skill cannot stay, or null. `all` are the gateway's skills after the install.
 */
export type Objection = (skill: GatewaySkill, all: readonly GatewaySkill[]) => string | null

/**
 * Makes the gateway download and install one version. Then verifies that the installed files are exactly the published
 * ones, byte for byte, because the gateway does not compare them. Skips the check when the registry lists no files.
 * With `replace`, the skill replaces the content of its folder. `mask` hides secrets in the gateway's message.
 *
 * Throws AppError `invalid` when the gateway refuses. Also removes the skill and throws `invalid` when its files
 * differ, OpenClaw cannot use it, or `objection` returns a sentence. A crash half-way leaves the skill in the
 * workspace; a repeated call with `replace` verifies it again.
 */
export async function installVersion(
  gateway: GatewayClient,
  files: SandboxFiles,
  { reference, release, replace }: { reference: SkillReference; release: SkillRelease; replace: boolean },
  objection: Objection,
  mask: Mask,
  signal: AbortSignal,
): Promise<{ skill: GatewaySkill; output: string }> {
  const slug = referenceText(reference)
  const params = { source: 'clawhub', slug, version: release.version, ...(replace && { force: true }) }
  const answer = await gateway
    .call('skills.install', params, { timeoutMs: installTimeoutMs })
    .catch((error: unknown) => {
      throw error instanceof GatewayRefusal ? installError(error, slug, mask) : error
    })
  const changed = await differenceFrom(release, files, reference, signal)
  const all = changed === null ? await waitForList(gateway, reference, true, signal) : []
  const skill = skillIn(all, reference)
  const fault = changed ?? faultOf(skill, release, (found) => objection(found, all))
  if (fault !== null || !skill) {
    await removeSkill(gateway, files, reference, signal)
    const note = replace ? ' The previous content of its folder is removed too.' : ''
    throw new AppError('skill_refused', `${slug} ${release.version} is not installed: ${fault}${note}`)
  }
  return { skill, output: mask(outputOf(answer), true) }
}

function installError(cause: GatewayRefusal, slug: string, mask: Mask): AppError {
  if (cause.message.includes('temporarily unavailable')) {
    return new AppError('skill_registry_unreachable', 'The skill registry does not answer OpenClaw. Try again later.', {
      cause,
    })
  }
  const message = mask(cause.message.slice(0, searchedCharacters), true)
    .replaceAll(/\/\S*\/workspace\//g, '')
    .slice(0, shownCharacters)
  return new AppError('skill_refused', `OpenClaw did not install ${slug}: ${message}`, { cause })
}

function outputOf(answer: unknown): string {
  const { message, warning } = isObject(answer) ? answer : {}
  const texts = [message, warning].filter((text) => typeof text === 'string')
  return texts.join('\n').slice(0, maxOutputCharacters)
}

function faultOf(
  skill: GatewaySkill | undefined,
  { version }: SkillRelease,
  objection: (skill: GatewaySkill) => string | null,
): string | null {
  if (!skill) return 'OpenClaw finds no skill in it: its SKILL.md lacks a name or a description.'
  return skill.installed?.version === version ? objection(skill) : 'OpenClaw lists another version of it.'
}

/**
 * Deletes a skill's folder in the workspace and its entry in ClawHub's lock file, from which an update would restore
 * it. Waits until the gateway no longer lists the skill. Follows no links of the agent out of the workspace. After a
 * crash a repeated call completes the removal.
 */
export async function removeSkill(
  gateway: GatewayClient,
  files: SandboxFiles,
  reference: SkillReference,
  signal: AbortSignal,
): Promise<void> {
  await deleteSkillFiles(files, reference, signal)
  await waitForList(gateway, reference, false, signal)
}
