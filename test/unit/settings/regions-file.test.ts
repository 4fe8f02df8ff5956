import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import { BadEnvironment, loadConfig } from '#settings/config.ts'
import { readRegionsFile } from '#settings/regions-file.ts'

const folder = mkdtempSync(join(tmpdir(), 'chowder-regions-'))
afterAll(() => rmSync(folder, { recursive: true }))
const path = join(folder, 'chowder.yaml')

function read(text: string, env: NodeJS.ProcessEnv = {}) {
  writeFileSync(path, text)
  return readRegionsFile(path, loadConfig(env))
}

function faultsOf(text: string): string[] {
  try {
    read(text)
  } catch (error) {
    if (error instanceof BadEnvironment)
      return error.message
        .split('\n')
        .slice(1)
        .map((line) => line.trim())
    throw error
  }
  return []
}

test('a region has the settings of the environment, unless the file says otherwise', () => {
  const [east, lab] = read(
    `regions:
  east:
    driver: docker
    default: true
    host: tcp://10.0.0.1:2376
    node_image: node:24
    resources: { memory_mb: 4096, cpus: 1.5 }
    egress:
      allowed_hosts: [a.internal:8065, 10.0.0.0/8:443]
    models:
      anthropic: https://models.example.com
  lab:
    driver: local
    storage: /srv/lab
    isolation: none
`,
    { DOCKER_BUILD_NETWORK: 'of-variable', ANTHROPIC_BASE_URL: 'https://other.example.com' },
  )
  expect(east).toMatchObject({
    name: 'east',
    isDefault: true,
    storage: undefined,
    config: {
      SANDBOX_DRIVER: 'docker',
      DOCKER_HOST: 'tcp://10.0.0.1:2376',
      DOCKER_NODE_IMAGE: 'node:24',
      DOCKER_BUILD_NETWORK: 'of-variable',
      AGENT_RESOURCES: 'memory_mb=4096,cpus=1.5',
      EGRESS_ALLOWED_HOSTS: 'a.internal:8065,10.0.0.0/8:443',
      ANTHROPIC_BASE_URL: 'https://models.example.com',
    },
  })
  expect(lab).toMatchObject({
    name: 'lab',
    isDefault: false,
    storage: '/srv/lab',
    config: {
      SANDBOX_DRIVER: 'local',
      LOCAL_ISOLATION: 'none',
      DOCKER_HOST: 'unix:///var/run/docker.sock',
      ANTHROPIC_BASE_URL: 'https://other.example.com',
    },
  })
})

test('the only region is the default', () => {
  expect(read('regions:\n  a:\n    driver: local\n')).toMatchObject([{ name: 'a', isDefault: true }])
})

describe('a bad file is refused with the field and the rule', () => {
  test.each([
    ['no YAML', 'regions:\n  a: [\n', ['line 3: this is not YAML (BAD_INDENT)']],
    ['nothing', '', ['the file must have the field regions']],
    [
      'another field',
      'region:\n  a: {driver: local}\n',
      [
        'regions must have the name of a region, and its fields below',
        'region is not a known field; did you mean regions',
      ],
    ],
    ['no region', 'regions: {}\n', ['regions must have the name of a region, and its fields below']],
    [
      'a bad name',
      'regions:\n  A_b: {driver: local}\n',
      ['regions.A_b is not the name of a region: 1 to 63 lower-case letters, digits and hyphens'],
    ],
    ['no driver', 'regions:\n  a:\n    default: true\n', ['regions.a.driver must be one of local, docker, kubernetes']],
    [
      'an unknown driver',
      'regions:\n  a:\n    driver: lxc\n',
      ['regions.a.driver must be one of local, docker, kubernetes'],
    ],
    [
      'a misspelt field',
      'regions:\n  a:\n    driver: docker\n    node_imgae: x\n',
      ['regions.a.node_imgae is not a known field of the driver docker; did you mean node_image'],
    ],
    [
      'a field of the other driver',
      'regions:\n  a:\n    driver: docker\n    storage: /srv\n',
      [
        expect.stringMatching(
          /^regions\.a\.storage is not a known field of the driver docker; known: .*, host, cert_path/,
        ),
      ],
    ],
    [
      'a relative folder',
      'regions:\n  a:\n    driver: local\n    storage: srv\n',
      ['regions.a.storage must be the absolute path of a folder'],
    ],
    [
      'a bad URL',
      'regions:\n  a:\n    driver: local\n    models:\n      openai: ftp://x\n',
      ['regions.a.models.openai must be a URL that begins with http:// or https://'],
    ],
    ['no fields', 'regions:\n  a:\n', ['regions.a must have fields, each with its value']],
    [
      'a text instead of a list',
      'regions:\n  a:\n    driver: local\n    egress: {allowed_hosts: a.internal}\n',
      ['regions.a.egress.allowed_hosts must be a list of hosts such as 10.0.0.0/8:443'],
    ],
    [
      'faults of two regions',
      'regions:\n  a: {driver: local, isolation: x}\n  b: {driver: docker, default: 1}\n',
      ['regions.a.isolation must be one of auto, jail, none', 'regions.b.default must be true or false'],
    ],
    [
      'limits that are none',
      'regions:\n  a:\n    driver: local\n    resources: {memory_mb: 1}\n',
      [expect.stringMatching(/^regions\.a\.resources must have numbers for some of memory_mb, cpus/)],
    ],
    [
      'no default among several',
      'regions:\n  a: {driver: local}\n  b: {driver: docker}\n',
      ['regions needs one region with default: true, of a, b'],
    ],
    [
      'two defaults',
      'regions:\n  a: {driver: local, default: true}\n  b: {driver: docker, default: true}\n',
      ['regions.b.default must be true in one region only'],
    ],
    [
      'a name twice',
      'regions:\n  a: {driver: local}\n  a: {driver: local}\n',
      ['line 3: this is not YAML (DUPLICATE_KEY)'],
    ],
  ])('%s', (_what, text, faults) => {
    expect(faultsOf(text)).toEqual(faults)
  })

  test('without what stands there', () => {
    expect(faultsOf('regions:\n  a:\n    driver: s3cret\n    relay_url: s3cret\n').join()).not.toContain('s3cret')
  })

  test('one that is missing', () => {
    expect(() => readRegionsFile('/nowhere/chowder.yaml', loadConfig({}))).toThrow(
      'CHOWDER_CONFIG_FILE names /nowhere/chowder.yaml, which does not exist. Correct the path, or make it readable.',
    )
  })
})
