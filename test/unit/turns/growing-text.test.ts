import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { expect, test } from 'vitest'
import { GrowingText } from '#turns/gateway-answer.ts'

test('is the text of all its pieces at any time', () => {
  const text = new GrowingText('begun ')
  let expected = 'begun '
  for (let count = 0; count < 5000; count += 1) {
    text.add(`${count} `)
    expected += `${count} `
    if (count % 700 === 0) expect(text.toString()).toBe(expected)
  }
  expect(text.toString()).toBe(expected)
})

test('needs hardly more memory than its characters, however short its pieces are', () => {
  setFlagsFromString('--expose-gc')
  const collect: () => void = runInNewContext('gc')
  const heapBytes = () => {
    collect()
    return process.memoryUsage().heapUsed
  }
  const before = heapBytes()
  const text = new GrowingText()
  const characters = 1_000_000
  for (let count = 0; count < characters; count += 1) text.add('x')
  expect(heapBytes() - before).toBeLessThan(4 * characters)
  expect(text.toString()).toHaveLength(characters)
})
