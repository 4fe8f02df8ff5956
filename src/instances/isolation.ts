import { eq } from 'drizzle-orm'
import type { Db } from '#database/client.ts'
import { type Isolation, organizations } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { parseOverrides } from '#openclaw/config/overrides.ts'
import { findOutsideRoom } from '#openclaw/config/room.ts'
import type { AgentSettings } from './agent-settings.ts'

/**
 * Throws AppError `invalid_value` if agents cannot have a tool room here, or for approvals, which OpenClaw asks only for
 * commands beside the gateway, and `invalid_openclaw_config` for overrides that would run something outside of it.
 */
export function requireIsolation(
  isolation: Isolation,
  { openclawConfig, approvals }: Pick<AgentSettings, 'openclawConfig' | 'approvals'>,
  hasTwoRooms: boolean,
): void {
  if (isolation === 'one_room') return
  if (!hasTwoRooms) throw new AppError('invalid_value', texts.noTwoRooms, { param: 'isolation' })
  if (approvals !== 'auto') throw new AppError('invalid_value', texts.approvalsOfOneRoom, { param: 'approvals' })
  const path = findOutsideRoom(parseOverrides(openclawConfig ?? {}).tree)
  if (path) throw new AppError('invalid_openclaw_config', texts.outsideRoom(path), { param: 'openclaw_config' })
}

/** The isolation of a new agent of an organization: where its tools run. */
export async function isolationOf(db: Db, organizationId: string): Promise<Isolation> {
  const [organization] = await db
    .select({ isolation: organizations.isolation })
    .from(organizations)
    .where(eq(organizations.id, organizationId))
  return organization?.isolation ?? 'one_room'
}
