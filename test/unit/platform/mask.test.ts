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
