const base64Bits = 6
const byteBits = 8
/** A shorter piece stands in other texts as well. */
const minCharacters = 10

export type Encoding = 'plain' | 'base64' | 'URL' | 'JSON'

/** What is in every base64 text of bytes that hold these, wherever in them they begin. */
function inBase64(value: string): string[] {
  return [0, 1, 2].flatMap((before) => {
    const bytes = Buffer.concat([Buffer.alloc(before), Buffer.from(value)])
    const first = Math.ceil((before * byteBits) / base64Bits)
    const end = Math.floor((bytes.length * byteBits) / base64Bits)
    const whole = bytes.toString('base64').slice(first, end)
    return [whole, whole.replaceAll('+', '-').replaceAll('/', '_')]
  })
}

const lowerHex = (text: string) => text.replace(/%[0-9A-F]{2}/g, (code) => code.toLowerCase())
const inJson = (text: string) => JSON.stringify(text).slice(1, -1)

/** The texts by which a secret is found, by how they are encoded. JSON may be a text of JSON once more. */
export function formsOf(value: string): [form: string, encoding: Encoding][] {
  const url = encodeURIComponent(value)
  const forms: [string, Encoding][] = [
    [value, 'plain'],
    ...inBase64(value).map((form): [string, Encoding] => [form, 'base64']),
    [url, 'URL'],
    [lowerHex(url), 'URL'],
    [inJson(value), 'JSON'],
    [inJson(inJson(value)), 'JSON'],
    [inJson(value).replaceAll('/', '\\/'), 'JSON'],
  ]
  return forms.filter(([form]) => form.length >= minCharacters)
}
