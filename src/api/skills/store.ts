import { and, eq, getTableColumns, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { instances, type Skill, skills } from '#database/schema.ts'
import { requireSettingsBound, skillSettingsPlace, unsealSkill } from '#instances/gateway/configuration.ts'
import { isOwnedBy } from '#instances/row.ts'
import type { Vault } from '#platform/secrets.ts'
import { mergeSettings, type SettingsPatch } from './settings.ts'

const isSkill = (instanceId: string, name: string) => and(eq(skills.instanceId, instanceId), eq(skills.name, name))

/** The stored skills of an instance: those that were installed or configured. */
export const listStoredSkills = (db: Db, organizationId: string, instanceId: string): Promise<Skill[]> =>
  db
    .select(getTableColumns(skills))
    .from(skills)
    .innerJoin(instances, eq(instances.id, skills.instanceId))
    .where(isOwnedBy(organizationId, instanceId))

/** Stores the release that was installed, in the transaction of that change. Stored settings stay. */
export async function storeRelease(
  tx: Db,
  instanceId: string,
  skill: { name: string; slug: string; version: string; digest: string | null },
): Promise<void> {
  const { slug, version, digest } = skill
  await tx
    .insert(skills)
    .values({ instanceId, ...skill })
    .onConflictDoUpdate({
      target: [skills.instanceId, skills.name],
      set: { slug, version, digest, updatedAt: sql`now()` },
    })
}

/**
 * Merges a patch into the stored settings of a skill. The transaction must hold the row of the instance, so that no
 * other transaction changes the settings between the read and the write.
 */
export async function patchStoredSettings(
  tx: Db,
  vault: Vault,
  instanceId: string,
  name: string,
  patch: SettingsPatch,
): Promise<void> {
  const [stored] = await tx.select().from(skills).where(isSkill(instanceId, name))
  const settings = mergeSettings(stored ? unsealSkill(vault, stored) : {}, patch)
  const isEmpty = Object.keys(settings).length === 0
  if (isEmpty && !stored?.slug) return deleteStoredSkill(tx, instanceId, name)
  const sealedSettings = isEmpty ? null : vault.seal(JSON.stringify(settings), skillSettingsPlace(instanceId, name))
  await tx
    .insert(skills)
    .values({ instanceId, name, sealedSettings })
    .onConflictDoUpdate({
      target: [skills.instanceId, skills.name],
      set: { sealedSettings, updatedAt: sql`now()` },
    })
  await requireSettingsBound(tx, instanceId)
}

/** Deletes a skill with its settings, in the transaction of that change. */
export async function deleteStoredSkill(tx: Db, instanceId: string, name: string): Promise<void> {
  await tx.delete(skills).where(isSkill(instanceId, name))
}
