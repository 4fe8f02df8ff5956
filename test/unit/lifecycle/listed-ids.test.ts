import { expect, test } from 'vitest'
import { collectIds } from '#lifecycle/watch/listed-ids.ts'
import { newId } from '#platform/ids.ts'

const newIds = (count: number) => Array.from({ length: count }, () => newId())

test('a collection has the ids of all its pages, and no other', () => {
  const pages = [newIds(1000), newIds(1000), newIds(1500), newIds(7)]
  const collected = collectIds()
  for (const page of pages) collected.add(page)
  const listed = collected.sorted()
  expect(listed.size).toBe(3507)
  expect(pages.flat().filter((id) => !listed.has(id))).toEqual([])
  expect(newIds(3000).filter((id) => listed.has(id))).toEqual([])
})

test('the first and the last id count, and a name that is no id hides none', () => {
  const [least, most] = ['00000000-0000-7000-8000-000000000000', '00000000-0000-7000-8000-ffffffffffff']
  const collected = collectIds()
  collected.add([most, 'a name of somebody else', least])
  const listed = collected.sorted()
  expect([least, most].map((id) => listed.has(id))).toEqual([true, true])
  expect(listed.has('00000000-0000-7000-8000-000000000001')).toBe(false)
})

test('an empty collection has no id', () => {
  expect(collectIds().sorted().has(newId())).toBe(false)
})
