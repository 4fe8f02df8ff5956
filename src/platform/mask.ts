/** Hides secrets in a text. With `isCut`, the text may end within a secret, whose beginning is hidden too. */
export type Mask = (text: string, isCut: boolean) => string

const hidden = '***'
/** Shorter values are no secrets, and masking them would hide ordinary words. */
const minCharacters = 6
/** A shorter part of a cut secret reveals nothing. */
const minCutCharacters = 4
const base64Bits = 6
const bitsPerByte = 8

/** A secret in base64, also within a longer encoded text: it may begin at any of three byte positions. */
function inBase64(secret: string): string[] {
  return [0, 1, 2].flatMap((before) => {
    const bytes = Buffer.concat([Buffer.alloc(before), Buffer.from(secret)])
    const first = Math.ceil((before * bitsPerByte) / base64Bits)
    const end = Math.floor((bytes.length * bitsPerByte) / base64Bits)
    return (['base64', 'base64url'] as const).map((encoding) => bytes.toString(encoding).slice(first, end))
  })
}

/** As in a URL, with hexadecimal digits of either case, and in a form. */
function inUrl(secret: string): string[] {
  const encoded = encodeURIComponent(secret.toWellFormed())
  const forms = [encoded, encoded.replaceAll('%20', '+')]
  return forms.flatMap((form) => [form, form.replace(/%[0-9A-F]{2}/g, (code) => code.toLowerCase())])
}

/** As in JSON, in JSON within JSON, and in the output of programs that escape the slash. */
function inJson(secret: string): string[] {
  const escaped = (text: string) => JSON.stringify(text).slice(1, -1)
  return [escaped(secret), escaped(escaped(secret)), escaped(secret).replaceAll('/', '\\/')]
}

/** A secret in the notations of programs. One with several lines is a secret in each of them. */
const formsOf = (secret: string): string[] => [
  secret,
  ...secret.split(/\r?\n/),
  ...inJson(secret),
  ...inUrl(secret),
  ...inBase64(secret),
]

/** Longer forms are hidden piece by piece: the search then takes the same time for secrets of any length. */
const pieceCharacters = 32

/** The last piece overlaps the one before, so that all have the same length. */
function piecesOf(form: string): string[] {
  const count = Math.max(0, Math.ceil(form.length / pieceCharacters) - 1)
  const whole = Array.from({ length: count }, (_, index) =>
    form.slice(index * pieceCharacters).slice(0, pieceCharacters),
  )
  return [...whole, form.slice(-pieceCharacters)]
}

/** Whether a text of a sorted list begins with `beginning`. */
function hasBeginning(sorted: readonly string[], beginning: string): boolean {
  let [from, to] = [0, sorted.length]
  while (from < to) {
    const middle = (from + to) >>> 1
    if ((sorted[middle] ?? '') < beginning) from = middle + 1
    else to = middle
  }
  return sorted[from]?.startsWith(beginning) === true
}

/**
 * Hides secrets of at least six characters in plain text, in JSON, in URLs and in base64. Building and each call take
 * time linear in the secrets and in the text: whoever sets secrets could otherwise stop the process with them.
 */
export function createMask(secrets: Iterable<string>): Mask {
  const pieces = new Set<string>()
  for (const secret of secrets)
    for (const form of formsOf(secret))
      if (form.length >= minCharacters) for (const piece of piecesOf(form)) pieces.add(piece)
  const sorted = [...pieces].sort()
  const beginnings = new Set(sorted.map((piece) => piece.slice(0, minCharacters)))
  const lengths = [...new Set(sorted.map(({ length }) => length))].sort((one, other) => other - one)

  const lengthAt = (text: string, at: number): number =>
    beginnings.has(text.slice(at, at + minCharacters))
      ? (lengths.find((length) => pieces.has(text.slice(at, at + length))) ?? 0)
      : 0

  /** The length of a secret's beginning at the end of a text. */
  const lengthOfCut = (text: string): number => {
    for (let length = Math.min(pieceCharacters - 1, text.length); length >= minCutCharacters; length -= 1)
      if (hasBeginning(sorted, text.slice(-length))) return length
    return 0
  }

  return (text, isCut) => {
    const ranges: { from: number; to: number; isPiece: boolean }[] = []
    const hide = (from: number, length: number) => {
      const last = ranges.at(-1)
      const to = from + length
      const isPiece = length === pieceCharacters
      if (last && (from < last.to || (from === last.to && last.isPiece)))
        Object.assign(last, { to: Math.max(last.to, to), isPiece: to > last.to ? isPiece : last.isPiece })
      else ranges.push({ from, to, isPiece })
    }
    for (let at = 0; at + minCharacters <= text.length; at += 1) {
      const length = lengthAt(text, at)
      if (length > 0) hide(at, length)
    }
    const cut = isCut ? lengthOfCut(text) : 0
    if (cut > 0) hide(text.length - cut, cut)
    let shown = ''
    let end = 0
    for (const { from, to } of ranges) {
      shown += text.slice(end, from) + hidden
      end = to
    }
    return shown + text.slice(end)
  }
}
