import { describe, expect, test } from 'vitest'
import { parseRange } from '#api/files/download.ts'
import { existingPath, movablePath, newFilePath, newPath, parsePath } from '#api/files/paths.ts'

describe('a path in the workspace', () => {
  test.each([
    ['a/b', 'a/b'],
    ['./a//b/', 'a/b'],
    ['.', '.'],
    ['./', '.'],
    ['...', '...'],
    ['a..b/..c', 'a..b/..c'],
    ['.keep', '.keep'],
  ])('%j becomes %j', (given, path) => {
    expect(parsePath(given)).toBe(path)
  })

  test.each(['..', '../a', 'a/../b', 'a/..', '/', '/a', '//a', 'a\\b', '..\\a', 'a\0'])('%j is refused', (given) => {
    for (const check of [parsePath, existingPath, movablePath, newPath, newFilePath]) {
      expect(() => check(given)).toThrow(expect.objectContaining({ kind: 'invalid' }))
    }
  })
})

test.each([
  [undefined, 10, null],
  ['bytes=0-0', 10, { start: 0, end: 1 }],
  ['bytes=9-9', 10, { start: 9, end: 10 }],
  ['bytes=3-', 10, { start: 3, end: 10 }],
  ['bytes=-4', 10, { start: 6, end: 10 }],
  ['bytes=-40', 10, { start: 0, end: 10 }],
  ['bytes=10-', 10, 'unsatisfiable'],
  ['bytes=-0', 10, 'unsatisfiable'],
  ['bytes=0-', 0, 'unsatisfiable'],
  ['bytes=-5', 0, 'unsatisfiable'],
  ['bytes=4-2', 10, null],
  ['bytes=-', 10, null],
  ['bytes=a-b', 10, null],
  ['bytes=0-1,2-3', 10, null],
  ['lines=0-1', 10, null],
  [`bytes=0-${'9'.repeat(400)}`, 10, { start: 0, end: 10 }],
  [`bytes=${'9'.repeat(400)}-`, 10, 'unsatisfiable'],
])('the range %j of a file of %d bytes is %j', (header, size, range) => {
  expect(parseRange(header, size)).toEqual(range)
})
