import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { parse } from 'yaml'
import { dockerSettings } from '#composition/docker-settings.ts'
import { networkOptions } from '#sandbox/docker/network.ts'
import { loadConfig, settingNames } from '#settings/config.ts'
import { present } from '../support/present.ts'

interface Service {
  command?: string
  environment?: Record<string, string | null>
  volumes?: string[]
  networks?: string[]
}
interface Network {
  name?: string
  internal?: boolean
  enable_ipv6?: boolean
  driver_opts?: Record<string, string>
}

const file = new URL('../../docker-compose.yml', import.meta.url)
const { services, networks } = parse(readFileSync(file, 'utf8'), { merge: true }) as {
  services: Record<string, Service>
  networks: Record<string, Network | null>
}

/** The settings of a service for Docker, without those that come from outside. */
const settingsOf = (service: string) => {
  const all = Object.entries(services[service]?.environment ?? {})
  const given = all.filter(([name]) => /^(DOCKER|RELAY)_/.test(name))
  return dockerSettings(loadConfig(Object.fromEntries(given.map(([name, text]) => [name, text?.replace(/\$.*/, '')]))))
}
const servicesIn = (network: string) =>
  Object.keys(services).filter((service) => services[service]?.networks?.includes(network))
/** The names of the networks of a service that lead to other hosts. */
const waysOut = (service: string) =>
  services[service]?.networks?.filter((name) => !networks[name]?.internal).map((name) => networks[name]?.name ?? name)

test('agents are in a network that is as the driver would make it, and without a way out', async () => {
  const { network, publishAddress, relayPort, relayUrl } = await settingsOf('worker')
  const options = present(networks.sandboxes)
  expect({
    Name: options.name,
    Driver: 'bridge',
    Internal: options.internal,
    EnableIPv6: options.enable_ipv6,
    Options: options.driver_opts,
  }).toEqual(networkOptions(network, { internal: true }))
  expect([publishAddress, relayPort, relayUrl]).toEqual([null, null, 'http://relay:18790'])
})

test('with agents are those that talk to gateways, and the relay, whose only way out has the firewall', async () => {
  expect(servicesIn('sandboxes')).toEqual(['api', 'worker', 'relay'])
  const { egressNetwork } = await settingsOf('worker')
  expect(waysOut('relay')).toEqual([egressNetwork])
})

test('the Docker proxy knows the networks of the worker', async () => {
  const { network, egressNetwork } = await settingsOf('worker')
  expect(await settingsOf('docker-proxy')).toMatchObject({ network, egressNetwork })
})

test('the network that agents of the version before are in is unchanged, and reaches whom it reached', () => {
  expect(networks.agents).toEqual({
    name: 'chowder-agents',
    enable_ipv6: false,
    driver_opts: {
      'com.docker.network.bridge.enable_icc': 'false',
      'com.docker.network.bridge.name': 'chowder-agents',
    },
  })
  expect(servicesIn('agents')).toEqual(['api', 'worker', 'relay'])
})

test.each(['api', 'worker', 'relay', 'migrate', 'docker-proxy'])('%s has no variable that is no setting', (service) => {
  const ofNode = ['NODE_OPTIONS', 'NODE_EXTRA_CA_CERTS']
  const names = Object.keys(services[service]?.environment ?? {}).filter((name) => !ofNode.includes(name))
  expect(names.length).toBeGreaterThan(0)
  expect(settingNames).toEqual(expect.arrayContaining(names))
})

test.each(['CHOWDER_CONFIG_FILE', 'CHOWDER_MODELS_FILE'])('%s is a path on the host, which each role reads', (name) => {
  for (const role of ['api', 'worker', 'relay']) {
    const { environment, volumes } = present(services[role])
    const [, inside = ''] = /^\$\{\w+:\+(.+)\}$/.exec(environment?.[name] ?? '') ?? []
    expect([role, volumes]).toEqual([role, expect.arrayContaining([`\${${name}:-/dev/null}:${inside}:ro`])])
  }
})
