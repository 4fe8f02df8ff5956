import { expect, test } from 'vitest'
import { createMask } from '#platform/mask.ts'

const secret = 'sk-ant/a+b=c d?"x'
const mask = createMask([secret, 'short', '-----BEGIN KEY-----\nMIIEvQIBADANBgkq\n-----END KEY-----'])

test.each([
  ['plain', `key=${secret}; next`, 'key=***; next'],
  ['twice', `${secret}${secret}`, '******'],
  ['in JSON', `{"key":${JSON.stringify(secret)}}`, '{"key":"***"}'],
  ['in JSON in JSON', JSON.stringify(JSON.stringify(secret)), String.raw`"\"***\""`],
  ['in JSON with an escaped slash', JSON.stringify(secret).replaceAll('/', '\\/'), '"***"'],
  ['in a URL', `https://x.test/?key=${encodeURIComponent(secret)}&a=1`, 'https://x.test/?key=***&a=1'],
  ['in a URL, in lower case', encodeURIComponent(secret).replace(/%../g, (code) => code.toLowerCase()), '***'],
  ['in a form', encodeURIComponent(secret).replaceAll('%20', '+'), '***'],
  ['a line of one with several lines', 'MIIEvQIBADANBgkq', '***'],
  ['too short for a secret', 'a short word', 'a short word'],
  ['none', 'sk-ant', 'sk-ant'],
])('a secret is hidden: %s', (_, text, masked) => {
  expect(mask(text, false)).toBe(masked)
})

test.each(['base64', 'base64url'] as const)('a secret is hidden in %s, wherever it begins in the bytes', (encoding) => {
  for (const user of ['', 'a', 'ab', 'abc', 'x:']) {
    for (const after of ['', 'y', 'yz']) {
      const text = Buffer.from(user + secret + after).toString(encoding)
      const masked = mask(`Authorization: Basic ${text}`, false)
      expect(masked).toContain('***')
      // What is left is the few bits that the secret shares with its neighbours.
      const left = masked.replace('Authorization: Basic ', '').replace('***', '')
      expect(left.length).toBeLessThanOrEqual(Math.ceil((user.length + after.length) * 1.4) + 6)
    }
  }
})

test('the beginning of a secret at the end of a line that was cut is hidden too', () => {
  expect(mask('x'.repeat(10) + secret.slice(0, 9), true)).toBe(`${'x'.repeat(10)}***`)
  expect(mask(secret.slice(0, 9), false)).toBe(secret.slice(0, 9))
  expect(mask('ends with sk', true)).toBe('ends with sk')
})

test('a long secret is hidden whole, wherever it stands, and also its cut part', () => {
  for (let length = 6; length < 140; length += 1) {
    const long = Array.from({ length }, (_, index) => String.fromCharCode(0x4e00 + index)).join('')
    const hide = createMask([long])
    expect(hide(`before ${long} after`, false)).toBe('before *** after')
    for (let cut = 4; cut < length; cut += 1) {
      const shown = hide(`before ${long.slice(0, cut)}`, true)
      expect(shown).toMatch(/^before \*\*\*.{0,3}$/)
      expect(hide(`${long.slice(0, cut)} after`, false).includes(long.slice(0, Math.min(cut, 32)))).toBe(cut < 32)
    }
  }
})

test('T4: secrets that are many, long and alike take time linear in them and in the text', () => {
  const many = Array.from({ length: 18_000 }, (_, index) => (1e9 + index * 7919).toString(36).slice(0, 6))
  const long = Array.from({ length: 16 }, (_, index) => `k${index}`.repeat(16_384).slice(0, 16_384))
  const alike = Array.from({ length: 26 }, (_, index) => `${'a'.repeat(6 + index)}b`)
  const startedAt = performance.now()
  const hide = createMask([...many, ...long, ...alike])
  const line = 'a'.repeat(16 * 1024)
  for (let lines = 0; lines < 8; lines += 1) hide(line, false)
  // Some 0.6 s; the quadratic mask took 40 s for this.
  expect(performance.now() - startedAt).toBeLessThan(10_000)
  expect(hide(`${line}b`, false)).toContain('***')
})
