import { distance } from 'fastest-levenshtein'

/** A longer word is not compared: the time grows with its length. */
const maxCharacters = 100

/** Removes differences of spelling: `modelProvider` and `MODEL-PROVIDER` are `modelprovider`. */
const plain = (word: string) => word.toLowerCase().replaceAll(/[^a-z0-9]/g, '')

/**
 * The known word closest to `word`, of up to 100 characters: the one that differs in the fewest letters, at most
 * `maxLetters` and fewer than half of them. Upper case, `_` and `-` do not count. Undefined if none is close.
 */
export function closestWord(word: string, known: Iterable<string>, maxLetters = 2): string | undefined {
  if (word.length > maxCharacters) return undefined
  const wanted = plain(word)
  let closest: string | undefined
  let least = Math.min(maxLetters, Math.ceil(wanted.length / 2) - 1) + 1
  for (const candidate of known) {
    const letters = distance(wanted, plain(candidate))
    if (letters < least) [closest, least] = [candidate, letters]
  }
  return closest
}
