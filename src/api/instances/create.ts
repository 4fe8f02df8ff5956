import type { Static } from '@sinclair/typebox'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { readOwnBudgets, setBudgets } from '#budgets/store.ts'
import type { Db } from '#database/client.ts'
import type { Instance as Row } from '#database/schema.ts'
import { requireEgress } from '#egress/store.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { idempotent } from '#http/idempotency.ts'
import { checkSettings, noSettings } from '#instances/agent-settings.ts'
import { ExternalIdTaken } from '#instances/external-id.ts'
import { newToken } from '#instances/gateway/tokens.ts'
import { insertInstance, type NewInstance } from '#instances/insert.ts'
import { isolationOf, requireIsolation } from '#instances/isolation.ts'
import type { InstanceQueue } from '#instances/queue.ts'
import { isIn, type Region, type Regions } from '#instances/regions.ts'
import { requireAllowed } from '#instances/resources.ts'
import { getInstance, sealToken } from '#instances/row.ts'
import { takeWarmInstance } from '#instances/warm-pool.ts'
import { refusalOf } from '#openclaw/release/advisories.ts'
import { defaultRelease, knownReleases } from '#openclaw/releases.ts'
import { type HostDisk, requireHostRoom } from '#platform/host-disk.ts'
import { newId } from '#platform/ids.ts'
import type { Vault } from '#platform/secrets.ts'
import { newColumns, settingsOf } from './columns.ts'
import type { CreateInstance } from './requests.ts'
import type { Instance } from './schemas.ts'
import type { createShow } from './show.ts'

export interface CreateDeps {
  db: Db
  vault: Vault
  queue: InstanceQueue
  regions: Regions
  hostDisk: HostDisk
  /** The idle timeout of an instance whose creator sends none, in seconds; null: it never sleeps. */
  idleTimeoutSeconds: number | null
  /** The oldest version of OpenClaw that agents may start with. */
  minOpenclawVersion: string
  /** Whether the customer can buy a higher limit. */
  hasBilling: boolean
  showWith: ReturnType<typeof createShow>['showWith']
}

/** Throws conflict for a release that this server does not start. */
export function requireStartable(release: string, minOpenclawVersion: string): void {
  const refusal = refusalOf(release, minOpenclawVersion)
  if (refusal) throw new AppError('release_refused', refusal)
}

/**
 * Returns the region and the row for a body, and a function that returns the same row with another id. Throws AppError
 * for a body that is not allowed.
 */
async function newInstance(
  { db, vault, regions, idleTimeoutSeconds, minOpenclawVersion }: CreateDeps,
  organizationId: string,
  body: Static<typeof CreateInstance>,
): Promise<{ region: Region; cold: NewInstance; rowOf(id: string): NewInstance }> {
  const regionName = body.region ?? null
  const region = regionName === null ? regions.default() : regions.named(regionName)
  const { sandboxes, resources } = region
  await requireAllowed(db, organizationId, body.resources, resources)
  const openclawVersion = body.openclaw_version ?? defaultRelease
  if (!knownReleases().includes(openclawVersion)) {
    throw new AppError('invalid_value', texts.unknownVersion(openclawVersion, knownReleases()), {
      param: 'openclaw_version',
    })
  }
  requireStartable(openclawVersion, minOpenclawVersion)
  if (body.egress) await requireEgress(db, { organizationId, isScoped: false }, null, body.egress)
  if (body.if_exists !== undefined && typeof body.external_id !== 'string') {
    throw new AppError('invalid_value', texts.ifExistsAlone, { param: 'if_exists' })
  }
  // An explicit null means never.
  const wanted = body.idle_timeout_seconds === undefined ? idleTimeoutSeconds : body.idle_timeout_seconds
  const rowOf = (id: string): NewInstance => ({
    id,
    organizationId,
    regionName: region.region,
    isolation: body.isolation ?? null,
    columns: {
      ...newColumns({ ...body, idle_timeout_seconds: wanted }, { id, vault }),
      openclawVersion,
      sandboxDriver: sandboxes.name,
      region: regions.toStore(regionName),
      sealedToken: sealToken(vault, id, newToken()),
    },
  })
  const cold = rowOf(newId())
  const settings = { ...noSettings, ...settingsOf(body) }
  checkSettings(settings, openclawVersion, cold.columns.modelProvider)
  // Only overrides and approvals can contradict the isolation of the organization.
  const mayContradict = settings.openclawConfig !== null || settings.approvals !== 'auto'
  const isolation = body.isolation ?? (mayContradict ? await isolationOf(db, organizationId) : ('one_room' as const))
  requireIsolation(isolation, settings, sandboxes.hasTwoRooms === true)
  return { region, cold, rowOf }
}

/**
 * Creates the requested instance with its budgets, or gives the organization a warm one that fits, and enqueues it after
 * the commit. With an `Idempotency-Key`, the answer is stored in the same transaction. Returns the answer and the row;
 * the row belongs to an earlier request when the answer is repeated or `if_exists` is `return`. A crash after the commit
 * leaves a due row, which the sweep finds. Throws AppError for a body or a caller that may not create it.
 */
export async function createInstance(
  deps: CreateDeps,
  request: FastifyRequest<{ Body: Static<typeof CreateInstance> }>,
  reply: FastifyReply,
): Promise<{ answer: Static<typeof Instance>; readRow(): Promise<Row> }> {
  const { db, queue, hasBilling, showWith } = deps
  const { body, caller } = request
  const { organizationId } = caller
  const { budgets } = body
  await requireHostRoom(deps.hostDisk)
  const { region, cold, rowOf } = await newInstance(deps, organizationId, body)
  const insert = async (tx: Db) =>
    (region.warmPool !== 0 && (await takeWarmInstance(tx, cold, rowOf, isIn(region)))) ||
    (await insertInstance(tx, cold, { hasBilling }))
  let created: Row | undefined
  const create = async (tx: Db) => {
    const inserted = await insert(tx).catch((error: unknown) => {
      if (!(error instanceof ExternalIdTaken && body.if_exists === 'return')) throw error
      reply.code(200)
      return error
    })
    if (inserted instanceof ExternalIdTaken) {
      return showWith(inserted.instance, await readOwnBudgets(tx, inserted.instance.id))
    }
    created = inserted
    if (!budgets) return showWith(inserted, [])
    await setBudgets(tx, { organizationId, id: inserted.id }, budgets)
    return showWith(inserted, await readOwnBudgets(tx, inserted.id))
  }
  const answer = await idempotent(deps, request, reply.code(201), create, { isOneStatement: !budgets })
  if (created) queue.enqueue() // after the commit: a worker must find the row
  const row = created
  return { answer, readRow: async () => row ?? (await getInstance(db, organizationId, answer.id)) }
}
