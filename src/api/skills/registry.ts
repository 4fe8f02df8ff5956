import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import type { ClawHub, SkillRelease } from '#openclaw/skills/clawhub.ts'
import { parseReference, referenceText, type SkillReference } from '#openclaw/skills/skill-reference.ts'
import type { InstanceSkill } from './list.ts'

/** The number of search results that are compared with a slug without its owner. */
const maxSearchResults = 50

export interface ReleaseRequest {
  /** The latest version if undefined. */
  version?: string | undefined
  /** Also accepts a version whose scan has not found it clean. */
  allowUnverified: boolean
}

/** Resolves a slug, with or without its owner. Throws invalid when no skill, or more than one, has the slug. */
export async function resolveSlug(clawhub: ClawHub, slug: string): Promise<SkillReference> {
  const reference = parseReference(slug)
  if (reference) return reference
  const matches = (await clawhub.search(slug, maxSearchResults)).filter((result) => result.slug === slug)
  const names = [...new Set(matches.map(referenceText))]
  if (names.length > 1) throw new AppError('unknown_skill', texts.ambiguousSkill(slug, names))
  if (!matches[0]) throw new AppError('unknown_skill', texts.noSuchSkill(slug))
  return matches[0]
}

/** Throws invalid, with the reason, when the verdict on the release forbids its installation. */
export async function getInstallableRelease(
  clawhub: ClawHub,
  reference: SkillReference,
  { version, allowUnverified }: ReleaseRequest,
): Promise<SkillRelease> {
  const release = await clawhub.release(reference, version)
  const { verdict } = release
  const name = `${referenceText(reference)} ${release.version}`
  if (verdict.kind === 'refused') throw new AppError('skill_refused', texts.skillRefused(name, verdict.reason))
  if (verdict.kind === 'unverified' && !allowUnverified) {
    throw new AppError('skill_unverified', texts.skillUnverified(name, verdict.reason))
  }
  return release
}

/** The reference of an installed skill. Throws invalid when the skill did not come from the registry. */
export function requireReference({ stored, reported }: InstanceSkill): SkillReference {
  const reference = parseReference(stored?.slug ?? '') ?? reported?.installed?.reference
  if (!reference) throw new AppError('skill_not_from_registry', texts.skillNotInstalled)
  return reference
}
