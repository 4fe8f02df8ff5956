import { eq } from 'drizzle-orm'
import type { Db } from './client.ts'
import { installation } from './schema.ts'

/** Stores a value of this installation unless the name has one. Returns the stored value. */
export async function storeOnce(db: Db, name: string, value: string): Promise<string> {
  await db.insert(installation).values({ name, value }).onConflictDoNothing()
  return (await readValue(db, name)) ?? value
}

/** Stores a value of this installation, and replaces an earlier one. */
export async function storeValue(db: Db, name: string, value: string): Promise<void> {
  await db
    .insert(installation)
    .values({ name, value })
    .onConflictDoUpdate({ target: installation.name, set: { value } })
}

/** A value of this installation; undefined when the name has none. */
export async function readValue(db: Db, name: string): Promise<string | undefined> {
  const [stored] = await db.select().from(installation).where(eq(installation.name, name))
  return stored?.value
}
