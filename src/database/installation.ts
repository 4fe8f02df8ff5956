import { eq } from 'drizzle-orm'
import type { Db } from './client.ts'
import { installation } from './schema.ts'

/** Stores a value of this installation unless the name has one. Returns the stored value. */
export async function storeOnce(db: Db, name: string, value: string): Promise<string> {
  await db.insert(installation).values({ name, value }).onConflictDoNothing()
  const [stored] = await db.select().from(installation).where(eq(installation.name, name))
  return stored?.value ?? value
}
