const owner = '[a-z0-9](?:[a-z0-9._-]{0,38}[a-z0-9])?'
const slug = '[a-z0-9](?:[a-z0-9-]{0,98}[a-z0-9])?'

/** A skill as callers name it: `@owner/slug`, or the slug alone. Every match is safe in a path, a URL and a command. */
export const slugPattern = `^(?:@${owner}/)?${slug}$`
export const versionPattern = '^[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}$'

const ownerRegExp = new RegExp(`^${owner}$`)
const slugRegExp = new RegExp(`^${slug}$`)
const versionRegExp = new RegExp(versionPattern)

/** One skill of the registry. The owner is part of it, because several publishers may use the same slug. */
export interface SkillReference {
  owner: string
  slug: string
}

export const referenceText = ({ owner, slug }: SkillReference) => `@${owner}/${slug}`

/** Null unless both are well-formed. */
export const referenceOf = (owner: unknown, slug: unknown): SkillReference | null =>
  typeof owner === 'string' && ownerRegExp.test(owner) && typeof slug === 'string' && slugRegExp.test(slug)
    ? { owner, slug }
    : null

/** Null for a slug without an owner, and for a malformed text. */
export function parseReference(text: string): SkillReference | null {
  const [owner, slug, extra] = text.startsWith('@') ? text.slice(1).split('/') : []
  return extra === undefined ? referenceOf(owner, slug) : null
}

export const isVersion = (value: unknown): value is string => typeof value === 'string' && versionRegExp.test(value)
