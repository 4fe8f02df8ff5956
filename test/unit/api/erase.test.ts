import { randomBytes, randomUUID } from 'node:crypto'
import { expect, test } from 'vitest'
import type { Field } from '#api/instances/field.ts'
import { fields } from '#api/instances/fields.ts'
import { erasedColumns } from '#database/schema.ts'
import { createVault } from '#platform/secrets.ts'

const written = Object.entries<Field>(fields).filter(([, { columns, isKept }]) => columns && !isKept)

test('the caller writes words into some fields', () => {
  expect(written.map(([name]) => name)).toEqual(expect.arrayContaining(['name', 'metadata', 'instructions']))
})

test.each(written)('the columns of %s are erased', (_name, { columns, example }) => {
  const target = { id: randomUUID(), vault: createVault(randomBytes(32)), row: null }
  expect(Object.keys(erasedColumns)).toEqual(
    expect.arrayContaining(Object.keys(columns?.(example as never, target) ?? {})),
  )
})
