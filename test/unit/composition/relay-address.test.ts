import { networkInterfaces } from 'node:os'
import { expect, test } from 'vitest'
import { listenHost } from '#composition/relay.ts'

const own = Object.values(networkInterfaces()).flatMap((addresses) => addresses?.map(({ address }) => address) ?? [])

test.each([...own, 'localhost'])('the relay listens at %s of this machine where RELAY_URL names it', (address) => {
  expect(listenHost(`http://${address.includes(':') ? `[${address}]` : address}:8090`)).toBe(address)
})

test.each(['http://relay:18790', 'https://relay.example.com', 'http://192.0.2.1:8090', 'http://[2001:db8::1]:8090'])(
  'the relay listens at all addresses where RELAY_URL is %s, which leads here by another machine or a name',
  (url) => {
    expect(listenHost(url)).toBe('0.0.0.0')
  },
)
