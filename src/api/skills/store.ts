import { and, eq, sql } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type Skill, skills } from '#database/schema.ts'
import { skillSettingsPlace } from '#instances/gateway/configuration.ts'
import type { Vault } from '#platform/secrets.ts'
import { mergeSettings, type SettingsPatch, type SkillSettings } from './settings.ts'

const named = (instanceId: string, name: string) => and(eq(skills.instanceId, instanceId), eq(skills.name, name))

/** Installed skills, and others that were configured. The instance must have been found for its organization before. */
export const listRecorded = (db: Db, instanceId: string): Promise<Skill[]> =>
  db.select().from(skills).where(eq(skills.instanceId, instanceId))

export const unsealSettings = (vault: Vault, { instanceId, name, sealedSettings }: Skill): SkillSettings =>
  sealedSettings === null ? {} : JSON.parse(vault.unseal(sealedSettings, skillSettingsPlace(instanceId, name)))

/** Pins what was installed; settings that are there stay. */
export async function recordRelease(
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
 * Changes the stored settings of a skill, sealed. The caller's transaction holds the instance's row, so that no other
 * change comes between reading and writing.
 */
export async function patchSettings(
  tx: Db,
  vault: Vault,
  instanceId: string,
  name: string,
  patch: SettingsPatch,
): Promise<void> {
  const [stored] = await tx.select().from(skills).where(named(instanceId, name))
  const settings = mergeSettings(stored ? unsealSettings(vault, stored) : {}, patch)
  const isEmpty = Object.keys(settings).length === 0
  if (isEmpty && !stored?.slug) return forgetSkill(tx, instanceId, name)
  const sealedSettings = isEmpty ? null : vault.seal(JSON.stringify(settings), skillSettingsPlace(instanceId, name))
  await tx
    .insert(skills)
    .values({ instanceId, name, sealedSettings })
    .onConflictDoUpdate({
      target: [skills.instanceId, skills.name],
      set: { sealedSettings, updatedAt: sql`now()` },
    })
}

/** Forgets a skill and its settings. */
export async function forgetSkill(tx: Db, instanceId: string, name: string): Promise<void> {
  await tx.delete(skills).where(named(instanceId, name))
}
