import { eq, type SQL, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type Instance, instances, organizations } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import type { Resources } from '#sandbox/driver.ts'
import { type ResourceLimits, type ResourceSettings, resourceNames } from '#settings/resources.ts'

/** Limits as a caller changes them: null removes an instance's own limit. */
export type ResourceChanges = { [Name in keyof ResourceLimits]?: number | null } | null

interface OfOrganization {
  resources: Partial<ResourceLimits>
  maxResources: Partial<ResourceLimits>
}

/** The maxima for instances of an organization. */
export const maximaOf = ({ maxResources }: Pick<OfOrganization, 'maxResources'>, { maxima }: ResourceSettings) => ({
  ...maxima,
  ...maxResources,
})

/**
 * The effective limits of an instance: its own, else those of its organization, else the operator's, capped by the
 * maxima.
 */
export function limitsFor(
  own: Partial<ResourceLimits>,
  organization: OfOrganization,
  settings: ResourceSettings,
): ResourceLimits {
  const wanted = { ...settings.defaults, ...organization.resources, ...own }
  const maxima = maximaOf(organization, settings)
  const bounded = resourceNames.map((name) => [name, Math.min(wanted[name], maxima[name])])
  return Object.fromEntries(bounded) as ResourceLimits
}

const findOrganization = async (db: Db, id: string): Promise<OfOrganization | undefined> => {
  const { resources, maxResources } = organizations
  const [found] = await db.select({ resources, maxResources }).from(organizations).where(eq(organizations.id, id))
  return found
}

/** The current limits of an instance. */
export async function findLimits(
  db: Db,
  { organizationId, resources }: Pick<Instance, 'organizationId' | 'resources'>,
  settings: ResourceSettings,
): Promise<ResourceLimits> {
  const organization = await findOrganization(db, organizationId)
  return limitsFor(resources, organization ?? { resources: {}, maxResources: {} }, settings)
}

/** Throws AppError `invalid_value` for a limit above that of the organization. */
export function requireWithin(changes: ResourceChanges, maxima: ResourceLimits): void {
  for (const name of resourceNames) {
    const wanted = changes?.[name] ?? 0
    if (wanted <= maxima[name]) continue
    throw new AppError('invalid_value', texts.aboveMaximum(name, wanted, maxima[name]), {
      param: `resources.${name}`,
    })
  }
}

/** Like `requireWithin`, with the maxima of an organization. */
export async function requireAllowed(
  db: Db,
  organizationId: string,
  changes: ResourceChanges | undefined,
  settings: ResourceSettings,
): Promise<void> {
  if (!changes) return
  const organization = await findOrganization(db, organizationId)
  if (organization) requireWithin(changes, maximaOf(organization, settings))
}

/** The limits that a caller has sent, without null ones. */
export const ownResources = (changes: ResourceChanges): Partial<ResourceLimits> =>
  Object.fromEntries(Object.entries(changes ?? {}).filter(([, value]) => value !== null))

/**
 * An instance's own limits after a change. SQL merges those of a stored instance, so that concurrent changes of
 * different limits do not undo each other.
 */
export function mergeResources(changes: ResourceChanges, row: Instance | null): Partial<ResourceLimits> | SQL {
  if (row === null || changes === null) return ownResources(changes)
  return sql`jsonb_strip_nulls(${instances.resources} || ${JSON.stringify(changes)}::jsonb)`
}

/** Converts limits to the form of the driver. */
export const forDriver = ({ memory_mb: memoryMb, cpus, pids, disk_mb: diskMb }: ResourceLimits): Resources => ({
  memoryMb,
  cpus,
  pids,
  diskMb,
})
