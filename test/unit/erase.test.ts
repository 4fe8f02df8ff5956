import { getTableColumns } from 'drizzle-orm'
import { expect, test } from 'vitest'
import { instances } from '#database/schema.ts'
import { erasedColumns } from '#instances/erase.ts'

/** Columns without any content of a caller: they stay, so that a sandbox that reappears is recognized. */
const keptColumns = [
  'id',
  'organizationId',
  'modelProvider',
  'openclawVersion',
  'desiredState',
  'generation',
  'isSuspended',
  'isolation',
  'restartGeneration',
  'observedGeneration',
  'step',
  'attempts',
  'nextAttemptAt',
  'leaseToken',
  'leaseUntil',
  'limits',
  'resources',
  'stoppedFor',
  'readyAt',
  'busy',
  'errorMessage',
  'endpoint',
  'region',
  'sandboxDriver',
  'sandboxId',
  'changedBy',
  'relayTokenHash',
  'createdAt',
  'updatedAt',
  'terminatedAt',
]

test('every column of an instance is erased, or holds nothing that a caller wrote', () => {
  const known = [...keptColumns, ...Object.keys(erasedColumns)]
  expect(known.sort(), 'add a new column to erasedColumns, or here').toEqual(
    Object.keys(getTableColumns(instances)).sort(),
  )
})
