import { eq } from 'drizzle-orm'
import type { Db } from './client.ts'
import { installation } from './schema.ts'

/** Remembers a fact about this installation unless it is known already; answers what is known. */
export async function rememberFirst(db: Db, name: string, value: string): Promise<string> {
  await db.insert(installation).values({ name, value }).onConflictDoNothing()
  const [known] = await db.select().from(installation).where(eq(installation.name, name))
  return known?.value ?? value
}
