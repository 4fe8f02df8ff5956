import { networkInterfaces } from 'node:os'
import { describe, expect, test } from 'vitest'
import { isPublicAddress } from '#egress/addresses.ts'
import { matches, parseHostRule, readHost } from '#egress/hosts.ts'
import { createDecide, readRules, readTarget } from '#egress/policy.ts'

const metadata = [
  '169.254.169.254',
  '2852039166',
  '0xA9FEA9FE',
  '0xa9.0xfe.0xa9.0xfe',
  '025177524776',
  '0251.0376.0251.0376',
  '169.254.43518',
  '169.16689662',
  '１６９.254.169.254',
  '169。254。169。254',
  '169.254.169.254.',
  '[::ffff:169.254.169.254]',
  '[::ffff:a9fe:a9fe]',
  '[0:0:0:0:0:ffff:a9fe:a9fe]',
  '[::a9fe:a9fe]',
  '[64:ff9b::a9fe:a9fe]',
  '[64:ff9b:1::a9fe:a9fe]',
  '[2002:a9fe:a9fe::1]',
  '[fd00:ec2::254]',
  '[fe80::a9fe:a9fe]',
]

describe('A5: addresses', () => {
  test.each(metadata)('the metadata service spelled %s is an address, and is not public', (spelled) => {
    const host = readHost(spelled)
    expect(host).toMatch(/^[0-9a-f.:]+$/)
    expect(isPublicAddress(host ?? '')).toBe(false)
    const decide = createDecide([])
    const listed = readRules({ mode: 'open', hosts: [spelled, `${spelled}:80`] })
    expect(decide(listed, { host: host ?? '', port: 80 }, null)).toEqual({
      isAllowed: false,
      reason: 'private_address',
    })
  })

  test.each([
    ...['0.0.0.0', '0.1.2.3', '10.1.2.3', '100.64.0.1', '100.100.100.200', '127.0.0.1', '127.9.9.9', '168.63.129.16'],
    ...['172.16.0.1', '172.31.255.255', '192.0.0.192', '192.0.2.1', '192.168.1.1', '198.18.0.1', '203.0.113.1'],
    ...['224.0.0.1', '239.255.255.255', '240.0.0.1', '255.255.255.255'],
    ...['::', '::1', '::ffff:10.0.0.1', '::ffff:127.0.0.1', '::127.0.0.1', '64:ff9b::7f00:1', '64:ff9b::a00:1'],
    ...['2002:7f00:1::', '2002:a00:1::1', '2001::1', '2001:db8::1', 'fc00::1', 'fd12::1', 'fe80::1', 'fec0::1'],
    ...['ff02::1', '4000::1', '100::1', '5f00::1'],
  ])('%s is not public', (address) => {
    expect(isPublicAddress(address)).toBe(false)
  })

  test.each(['1.1.1.1', '8.8.8.8', '172.15.0.1', '172.32.0.1', '192.167.1.1', '2606:4700::1111', '::ffff:8.8.8.8'])(
    '%s is public',
    (address) => {
      expect(isPublicAddress(address)).toBe(true)
    },
  )

  test('public addresses of IPv4 are public where networks of IPv6 have them', () => {
    expect(['64:ff9b::808:808', '2002:808:808::1'].map(isPublicAddress)).toEqual([true, true])
  })

  test('no address of this host is public', () => {
    const own = Object.values(networkInterfaces()).flatMap((entries) => entries?.map(({ address }) => address) ?? [])
    expect(own.length).toBeGreaterThan(0)
    expect(own.map((address) => isPublicAddress(address.split('%')[0] ?? ''))).not.toContain(true)
  })
})

describe('hosts', () => {
  test.each([
    ['Example.COM', 'example.com'],
    ['example.com.', 'example.com'],
    ['bücher.example', 'xn--bcher-kva.example'],
    ['[2606:4700:0:0::1111]', '2606:4700::1111'],
    ['2606:4700::1111', '2606:4700::1111'],
    ['134744072', '8.8.8.8'],
  ])('%s is read as %s', (written, read) => {
    expect(readHost(written)).toBe(read)
  })

  test.each([
    '',
    'a b',
    'a@b',
    'a/b',
    'a?b',
    'a#b',
    'a\\b',
    'a..b',
    '%31',
    '[fe80::1%25eth0]',
    'a'.repeat(300),
    'a\r\nb',
  ])('%j is no host', (written) => {
    expect(readHost(written)).toBeNull()
  })

  const rule = (text: string) => parseHostRule(text, { ranges: false }) ?? []
  test.each([
    ['api.example.com', 'api.example.com', 443, true],
    ['api.example.com', 'api.example.com', 80, true],
    ['api.example.com', 'api.example.com', 8443, false],
    ['api.example.com', 'a.api.example.com', 443, false],
    ['api.example.com:8443', 'api.example.com', 8443, true],
    ['api.example.com:8443', 'api.example.com', 443, false],
    ['*.example.com', 'a.example.com', 443, true],
    ['*.example.com', 'a.b.example.com', 443, true],
    ['*.example.com', 'example.com', 443, false],
    ['*.example.com', 'badexample.com', 443, false],
    ['*.EXAMPLE.com:443', 'a.example.com', 443, true],
    ['203.0.113.7:8443', '203.0.113.7', 8443, true],
    ['[2606:4700::1111]:443', '2606:4700::1111', 443, true],
    ['2606:4700::1111', '2606:4700::1111', 443, true],
  ])('the rule %s and %s at port %i: %s', (text, host, port, isMatch) => {
    expect(matches([rule(text)].flat(), host, port)).toBe(isMatch)
  })

  test.each([
    '*',
    '*.',
    '*.1.2.3.4',
    'a.*.com',
    '**.com',
    'a:0',
    'a:65536',
    'a:b',
    ':443',
    'http://a',
    'a/b',
    '10.0.0.0/8',
    'a b',
  ])('%j is no rule', (text) => {
    expect(parseHostRule(text, { ranges: false })).toBeNull()
  })

  test('ranges are for operators', () => {
    const ranges = { ranges: true }
    expect(parseHostRule('10.0.0.0/8:443', ranges)).toEqual({ host: null, range: '10.0.0.0/8', ports: [443] })
    expect(parseHostRule('[fd00::/8]:443', ranges)).toEqual({ host: null, range: 'fd00::/8', ports: [443] })
    expect(parseHostRule('10.0.0.0/8:*', ranges)).toEqual({ host: null, range: '10.0.0.0/8', ports: null })
    expect(parseHostRule('10.0.0.0/33', ranges)).toBeNull()
    expect(parseHostRule('a.example:*', { ranges: false })).toBeNull()
  })
})

describe('decisions', () => {
  const none: string[] = []
  const verdictOf = (
    policy: { mode: 'open' | 'allowlist' | 'report' | 'none'; hosts?: string[] },
    place: [host: string, port: number],
    addresses: string[] | null,
    operator = none,
  ) => {
    const decide = createDecide(operator.flatMap((text) => parseHostRule(text, { ranges: true }) ?? []))
    const rules = readRules({ hosts: [], ...policy })
    const decision = decide(rules, { host: place[0], port: place[1] }, addresses)
    return decision.isAllowed ? (decision.isListed ? 'listed' : 'allowed') : decision.reason
  }
  const web: [string, number] = ['a.example', 443]
  const odd: [string, number] = ['a.example', 8443]
  const out = ['8.8.8.8']

  test.each([
    [{ mode: 'open' }, web, out, 'allowed'],
    [{ mode: 'open' }, ['a.example', 80], out, 'allowed'],
    [{ mode: 'open' }, odd, out, 'port'],
    [{ mode: 'open', hosts: ['a.example:8443'] }, odd, out, 'listed'],
    [{ mode: 'open', hosts: ['a.example:25'] }, ['a.example', 25], out, 'mail_port'],
    [{ mode: 'open' }, web, ['8.8.8.8', '10.0.0.1'], 'private_address'],
    [{ mode: 'open' }, web, ['8.8.8.8', '::1'], 'private_address'],
    [{ mode: 'report' }, web, out, 'allowed'],
    [{ mode: 'report', hosts: ['a.example'] }, web, out, 'listed'],
    [{ mode: 'report' }, odd, out, 'port'],
    [{ mode: 'allowlist' }, web, null, 'not_listed'],
    [{ mode: 'allowlist', hosts: ['*.example'] }, web, out, 'listed'],
    [{ mode: 'allowlist', hosts: ['*.example'] }, web, ['127.0.0.1'], 'private_address'],
    [{ mode: 'none' }, web, null, 'egress_none'],
  ] as const)('%j: %j at %j is %s', (policy, place, addresses, verdict) => {
    expect(
      verdictOf(
        { ...policy, hosts: [...('hosts' in policy ? policy.hosts : [])] },
        [...place],
        addresses && [...addresses],
      ),
    ).toBe(verdict)
  })

  test('a private host of the operator is reached at its port, and by nobody whose policy does not let it through', () => {
    const operator = ['chat.internal:8065', '10.0.0.0/8:8443']
    const chat: [string, number] = ['chat.internal', 8065]
    expect(verdictOf({ mode: 'open' }, chat, ['10.1.1.1'], operator)).toBe('allowed')
    expect(verdictOf({ mode: 'open' }, ['chat.internal', 443], ['10.1.1.1'], operator)).toBe('private_address')
    expect(verdictOf({ mode: 'allowlist' }, chat, null, operator)).toBe('not_listed')
    expect(verdictOf({ mode: 'open' }, odd, ['10.1.1.1'], operator)).toBe('allowed')
    expect(verdictOf({ mode: 'open' }, odd, ['11.1.1.1'], operator)).toBe('port')
    expect(verdictOf({ mode: 'open' }, odd, ['10.1.1.1', '192.168.0.1'], operator)).toBe('private_address')
    expect(verdictOf({ mode: 'open' }, ['10.1.1.1', 8443], null, operator)).toBe('allowed')
    expect(verdictOf({ mode: 'none' }, chat, null, operator)).toBe('egress_none')
  })
})

describe('targets', () => {
  test.each([
    ['CONNECT', 'a.example:443', { host: 'a.example', port: 443, request: null }],
    ['CONNECT', '[2606:4700::1111]:443', { host: '2606:4700::1111', port: 443, request: null }],
    ['CONNECT', '2852039166:80', { host: '169.254.169.254', port: 80, request: null }],
    [
      'GET',
      'http://u:p@a.example:8080/x?y#z',
      { host: 'a.example', port: 8080, request: { path: '/x?y', hostHeader: 'a.example:8080' } },
    ],
  ])('%s %s', (method, url, target) => {
    expect(readTarget(method, url)).toEqual(target)
  })

  test.each([
    ['CONNECT', 'a.example'],
    ['CONNECT', 'a.example:0'],
    ['CONNECT', 'a@b:443'],
    ['CONNECT', 'a.example:443/x'],
    ['CONNECT', 'http://a.example:443'],
    ['GET', 'https://a.example/'],
    ['GET', 'ftp://a.example/'],
    ['GET', '*'],
    ['GET', '//a.example/'],
  ])('%s %s is refused', (method, url) => {
    expect(readTarget(method, url)).toBeNull()
  })
})
