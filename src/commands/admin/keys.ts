import {
  createOrganizationKey,
  findKey,
  type KeyRow,
  listKeys,
  revokeKey,
  revokeOrganizationKey,
} from '#api/keys/store.ts'
import { findOrganization } from '#api/organization/operator.ts'
import type { Db } from '#database/client.ts'
import { toMicroseconds } from '#platform/timestamps.ts'
import { type Command, shortTime, table } from './command.ts'

const stateOf = ({ revokedAt, isActive }: KeyRow): string => {
  if (isActive) return 'active'
  return revokedAt ? 'revoked' : 'expired'
}

const toData = (row: KeyRow) => ({
  id: row.id,
  prefix: row.keyPrefix,
  name: row.name,
  kind: row.permissions ? 'scoped' : 'organization',
  permissions: row.permissions,
  instance_ids: row.instanceIds,
  state: stateOf(row),
  expires_at: row.expiresAt && toMicroseconds(row.expiresAt),
  last_used_at: row.lastUsedAt && toMicroseconds(row.lastUsedAt),
  created_at: toMicroseconds(row.createdAt),
})

const headings = ['ID', 'KEY', 'NAME', 'KIND', 'STATE', 'LAST USED', 'CREATED'] as const

const toLine = (row: KeyRow): string[] => [
  row.id,
  row.keyPrefix,
  row.name,
  row.permissions ? row.permissions.join(',') : 'organization',
  stateOf(row),
  shortTime(row.lastUsedAt),
  shortTime(row.createdAt),
]

const pageSize = 1000

/** All keys of one kind, page by page. */
async function allKeys(db: Db, organizationId: string, kind: 'organization' | 'scoped') {
  const rows: Awaited<ReturnType<typeof listKeys>>['rows'] = []
  let position: string | undefined
  do {
    const page = await listKeys(db, organizationId, kind, { limit: pageSize, position })
    rows.push(...page.rows)
    position = page.next
  } while (position !== undefined)
  return rows
}

export const keyCommands: Readonly<Record<string, Command>> = {
  'create-key': {
    parameters: ['<org>'],
    summary: 'creates an organization key, and prints it once: for an organization that has lost its own',
    options: ['name'],
    event: 'key.create',
    async run({ db, words: [org = ''], options: { name = 'Created by the operator' } }) {
      const { id } = await findOrganization(db, org)
      const { key, row } = await db.transaction((tx) => createOrganizationKey(tx, id, { name }))
      const text = `${table(headings, [toLine(row)])}\n\nThe key, which is not shown again:\n${key}`
      return { text, data: { ...toData(row), api_key: key } }
    },
  },
  'list-keys': {
    parameters: ['<org>'],
    summary: 'its keys of both kinds, also revoked and expired ones, newest first',
    async run({ db, words: [org = ''] }) {
      const { id } = await findOrganization(db, org)
      const rows = [...(await allKeys(db, id, 'organization')), ...(await allKeys(db, id, 'scoped'))]
      return { text: table(headings, rows.map(toLine)), data: rows.map(toData) }
    },
  },
  'revoke-key': {
    parameters: ['<org>', '<key id>'],
    summary: 'revokes a key for good; it is refused within a second',
    event: 'key.revoke',
    async run({ db, words: [org = '', keyId = ''] }) {
      const { id } = await findOrganization(db, org)
      const { permissions } = await findKey(db, id, keyId)
      const row = await (permissions ? revokeKey : revokeOrganizationKey)(db, id, keyId)
      return { text: table(headings, [toLine(row)]), data: toData(row) }
    },
  },
}
