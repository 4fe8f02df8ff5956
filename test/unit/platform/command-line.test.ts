import { expect, test } from 'vitest'
import { printable } from '#platform/command-line.ts'

test('a text for a terminal has no control characters but line ends', () => {
  expect(printable('a \x1b[31mred\x1b[0m\r\x9b2J\x07\nnext, é and –')).toBe('a  [31mred [0m  2J \nnext, é and –')
})
