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

/** Hides secrets of at least six characters in plain text, in JSON, in URLs and in base64. */
export function createMask(secrets: Iterable<string>): Mask {
  const forms = [...new Set([...secrets].flatMap(formsOf))]
    .filter((form) => form.length >= minCharacters)
    .sort((one, other) => other.length - one.length) // one may contain another
  const lengthOfCut = (text: string, form: string): number => {
    for (let length = Math.min(form.length - 1, text.length); length >= minCutCharacters; length -= 1)
      if (text.endsWith(form.slice(0, length))) return length
    return 0
  }
  return (text, isCut) => {
    const masked = forms.reduce((rest, form) => rest.replaceAll(form, hidden), text)
    if (!isCut) return masked
    const length = Math.max(0, ...forms.map((form) => lengthOfCut(masked, form)))
    return length === 0 ? masked : masked.slice(0, -length) + hidden
  }
}
