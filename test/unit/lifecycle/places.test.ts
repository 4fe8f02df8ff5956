import { expect, test } from 'vitest'
import { createPlaces, type Places, placesOf } from '#lifecycle/attempt/places.ts'

/** Takes places for an organization until it may take no more. Returns how many. */
function fill(places: Places, organizationId: string): number {
  let taken = 0
  for (; places.free > 0 && !places.full().includes(organizationId); taken += 1) places.take(organizationId)
  return taken
}

test('an organization takes half of the places, and the next ones half of what is left', () => {
  const places = createPlaces(placesOf(8))
  expect(['a', 'b', 'c', 'd', 'e'].map((id) => fill(places, id))).toEqual([12, 6, 3, 2, 1])
  expect(places.free).toBe(0)
})

test.each([1, 2, 8, 64])('three organizations that hang leave a place for a fourth, with %s slots', (slots) => {
  const places = createPlaces(placesOf(slots))
  for (const id of ['a', 'b', 'c']) expect(fill(places, id)).toBeGreaterThan(0)
  expect(fill(places, 'd')).toBeGreaterThan(0)
})

test('a place that is left may be taken again, and who has left all is forgotten', () => {
  const places = createPlaces(placesOf(1))
  expect(fill(places, 'a')).toBe(5)
  expect(places.full()).toEqual(['a'])
  places.leave('a')
  expect(places.full()).toEqual([])
  for (let left = 4; left > 0; left -= 1) places.leave('a')
  expect([places.free, fill(places, 'b')]).toEqual([10, 5])
})
