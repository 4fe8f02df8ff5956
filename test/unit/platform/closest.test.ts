import { expect, test } from 'vitest'
import { closestWord } from '#platform/closest.ts'

const known = ['model_provider', 'name', 'metadata', 'openclaw_config']

test.each([
  ['model_provdier', 'model_provider'],
  ['modelProvider', 'model_provider'],
  ['MODEL-PROVIDER', 'model_provider'],
  ['metdata', 'metadata'],
  ['nam', 'name'],
  ['openclaw_confg', 'openclaw_config'],
])('%s was meant as %s', (word, meant) => {
  expect(closestWord(word, known)).toBe(meant)
})

test.each(['', 'x', 'n', 'game_of', 'provider', 'met', 'name'.repeat(1000)])('%j is close to none', (word) => {
  expect(closestWord(word, known)).toBeUndefined()
})
