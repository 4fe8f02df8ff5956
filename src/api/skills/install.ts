import type { Skill } from '#database/schema.ts'
import { changeConfig } from '#instances/gateway/change.ts'
import { parseReference, referenceText, type SkillReference, type SkillRelease } from '#openclaw/clawhub.ts'
import {
  type GatewaySkill,
  installRelease,
  type Objection,
  readSkills,
  removeSkill,
  skillIn,
} from '#openclaw/skills.ts'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'
import { changeSettings, withSettings } from './configure.ts'
import { findSkill, type KnownSkill, requireRunning, type SkillWork } from './lookup.ts'
import { checkVariables, isUsableName, mergeSettings } from './settings.ts'
import { forgetSkill, listRecorded, recordRelease } from './store.ts'

/** How many of the registry's answers are looked through for a slug without its owner. */
const maxCandidates = 50

export interface Installed {
  skill: GatewaySkill
  version: string
  digest: string | null
  output: string
}

interface Wanted {
  version?: string | undefined
  allowUnverified: boolean
}

/** The one skill of the registry that is meant. Throws AppError `invalid` when there is none, or more than one. */
async function resolve({ clawhub }: SkillWork, slug: string): Promise<SkillReference> {
  const reference = parseReference(slug)
  if (reference) return reference
  const found = (await clawhub.search(slug, maxCandidates)).filter((one) => one.slug === slug)
  const names = [...new Set(found.map(referenceText))]
  if (names.length > 1) throw new AppError('invalid', texts.ambiguousSkill(slug, names))
  if (!found[0]) throw new AppError('invalid', texts.noSuchSkill(slug))
  return found[0]
}

/** The release, if it may be installed. Throws AppError `invalid` with the reason when its verdict forbids it. */
async function admit(
  { clawhub }: SkillWork,
  reference: SkillReference,
  { version, allowUnverified }: Wanted,
): Promise<SkillRelease> {
  const release = await clawhub.release(reference, version)
  const { verdict } = release
  const name = `${referenceText(reference)} ${release.version}`
  if (verdict.kind === 'refused') throw new AppError('invalid', texts.skillRefused(name, verdict.why))
  if (verdict.kind === 'unverified' && !allowUnverified) {
    throw new AppError('invalid', texts.skillUnverified(name, verdict.why))
  }
  return release
}

/** Whether what is in the skill's folder may be replaced. Throws AppError `conflict` when it is somebody else's, or complete. */
function mayReplace(reference: SkillReference, there: GatewaySkill | undefined, rows: readonly Skill[]): boolean {
  const slug = referenceText(reference)
  const recorded = rows.find((row) => row.slug === slug)
  if (!there) return recorded !== undefined
  if (recorded) throw new AppError('conflict', texts.skillInstalled(recorded.name, recorded.version ?? ''))
  if (!there.installed) throw new AppError('conflict', texts.skillFolderTaken(reference.slug))
  const other = referenceText(there.installed.reference)
  if (other !== slug) throw new AppError('conflict', texts.otherSkillInstalled(other))
  return true // an install that was cut off before it was recorded
}

const nameObjection =
  (slug: string, rows: readonly Skill[]): Objection =>
  ({ key }, all) => {
    if (!isUsableName(key)) return 'the name that it gives itself cannot be used.'
    const isTaken =
      rows.some((row) => row.name === key && row.slug !== slug) || all.filter((one) => one.key === key).length > 1
    return isTaken ? `it takes the name of another skill, ${JSON.stringify(key)}.` : null
  }

/**
 * Puts a release into a running instance's workspace and records what was installed. The gateway's part comes first: a
 * crash between the two leaves the skill listed, without a record; installing it again checks and records it.
 */
async function place(
  work: SkillWork,
  organizationId: string,
  instanceId: string,
  { reference, release }: { reference: SkillReference; release: SkillRelease },
  plan: (all: readonly GatewaySkill[], rows: readonly Skill[]) => { replace: boolean; objection: Objection },
): Promise<Installed> {
  let done: Installed | undefined
  await changeConfig(work, organizationId, instanceId, {
    next: (stored) => stored,
    async verify(gateway, signal) {
      const { replace, objection } = plan(await readSkills(gateway), await listRecorded(work.db, instanceId))
      const files = work.sandboxes.files(instanceId)
      const { skill, output } = await installRelease(gateway, files, { reference, release, replace }, objection, signal)
      done = { skill, output, version: release.version, digest: skill.installed?.digest ?? null }
    },
    async store(tx, row) {
      if (!done) return
      const { skill, version, digest } = done
      await recordRelease(tx, row.id, { name: skill.key, slug: referenceText(reference), version, digest })
    },
    atRest: 'refuse',
  })
  return done as Installed
}

/**
 * Installs a skill of the registry on a running instance, after its verdict was checked, and gives it its variables.
 * Throws not_found, conflict when the instance does not run or the skill is there, invalid with the reason when it may
 * not be installed, gateway_unreachable also for the registry, and what `changeConfig` throws. When only its variables
 * cannot be set, the skill stays without them.
 */
export async function installSkill(
  work: SkillWork,
  organizationId: string,
  id: string,
  wanted: Wanted & { slug: string; env: Record<string, string> },
): Promise<Installed> {
  checkVariables(wanted.env)
  mergeSettings({}, { env: wanted.env }) // too large ones are refused before anything is installed
  const instanceId = await requireRunning(work, organizationId, id)
  const reference = await resolve(work, wanted.slug)
  const release = await admit(work, reference, wanted)
  const installed = await place(work, organizationId, instanceId, { reference, release }, (all, rows) => ({
    replace: mayReplace(reference, skillIn(all, reference), rows),
    objection: nameObjection(referenceText(reference), rows),
  }))
  if (Object.keys(wanted.env).length > 0) {
    await changeSettings(work, organizationId, instanceId, installed.skill.key, { env: wanted.env })
  }
  return installed
}

/** Where an installed skill came from. Throws AppError `invalid` when it did not come from the registry. */
function originOf({ recorded, seen }: KnownSkill): SkillReference {
  const reference = parseReference(recorded?.slug ?? '') ?? seen?.installed?.reference
  if (!reference) throw new AppError('invalid', texts.skillNotInstalled)
  return reference
}

/**
 * Puts another version, by default the latest, in the place of an installed skill; its settings stay. Nothing is done
 * when that version is there already, else what the agent changed in the skill's files is lost. Throws as `installSkill`.
 */
export async function updateSkill(
  work: SkillWork,
  organizationId: string,
  id: string,
  name: string,
  wanted: Wanted,
): Promise<Installed> {
  const instanceId = await requireRunning(work, organizationId, id)
  const known = await findSkill(work, organizationId, instanceId, name)
  const reference = originOf(known)
  const release = await admit(work, reference, wanted)
  const { seen, recorded } = known
  const { version } = release
  if (recorded?.version === version && seen?.installed?.version === version) {
    return { skill: seen, version, digest: recorded.digest, output: texts.skillUpToDate(name, version) }
  }
  return place(work, organizationId, instanceId, { reference, release }, () => ({
    replace: true,
    objection: ({ key }) => (key === name ? null : `it calls itself ${JSON.stringify(key)} now.`),
  }))
}

/**
 * Removes an installed skill from a running instance, its settings first. A crash half-way leaves the record: done again,
 * it finishes. Throws not_found, conflict when the instance does not run, invalid when the skill is not one of the
 * registry, and what `changeConfig` throws.
 */
export async function uninstallSkill(work: SkillWork, organizationId: string, id: string, name: string): Promise<void> {
  const instanceId = await requireRunning(work, organizationId, id)
  const reference = originOf(await findSkill(work, organizationId, instanceId, name))
  await changeConfig(work, organizationId, instanceId, {
    next: (stored) => withSettings(stored, name, {}),
    verify: (gateway, signal) => removeSkill(gateway, work.sandboxes.files(instanceId), reference, signal),
    store: (tx, row) => forgetSkill(tx, row.id, name),
    atRest: 'refuse',
  })
}
