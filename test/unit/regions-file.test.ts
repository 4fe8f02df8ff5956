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

describe('a bad file is refused with the line, the field and the rule', () => {
  test.each([
    ['no YAML', 'regions:\n  a: [\n', ['line 3: this is not YAML (BAD_INDENT)']],
    ['nothing', '', ['line 1: the file needs the field regions']],
    [
      'another field',
      'region:\n  a: {driver: local}\n',
      ['line 1: region is not a known field; did you mean regions', 'line 1: the file needs the field regions'],
    ],
    ['no region', 'regions: {}\n', ['line 1: regions must have the name of a region, and its fields below']],
    [
      'a bad name',
      'regions:\n  A_b: {driver: local}\n',
      ['line 2: regions has a name that is no name: 1 to 63 lower-case letters, digits and hyphens'],
    ],
    [
      'no driver',
      'regions:\n  a:\n    default: true\n',
      ['line 3: regions.a needs the field driver: local, docker or kubernetes'],
    ],
    [
      'an unknown driver',
      'regions:\n  a:\n    driver: lxc\n',
      ['line 3: regions.a.driver must be one of local, docker, kubernetes'],
    ],
    [
      'a misspelt field',
      'regions:\n  a:\n    driver: docker\n    node_imgae: x\n',
      ['line 4: regions.a.node_imgae is not a known field; did you mean node_image'],
    ],
    [
      'a field of the other driver',
      'regions:\n  a:\n    driver: docker\n    storage: /srv\n',
      ['line 4: regions.a.storage is for the driver local: remove it, or set driver to local'],
    ],
    [
      'a relative folder',
      'regions:\n  a:\n    driver: local\n    storage: srv\n',
      ['line 4: regions.a.storage must be the absolute path of a folder'],
    ],
    [
      'a bad URL',
      'regions:\n  a:\n    driver: local\n    models:\n      openai: ftp://x\n',
      ['line 5: regions.a.models.openai must be a URL that begins with http:// or https://'],
    ],
    [
      'limits that are none',
      'regions:\n  a:\n    driver: local\n    resources: {memory_mb: 1}\n',
      [expect.stringMatching(/^line 4: regions\.a\.resources must have numbers for some of memory_mb, cpus/)],
    ],
    [
      'no default among several',
      'regions:\n  a: {driver: local}\n  b: {driver: docker}\n',
      ['line 2: regions needs one region with default: true, of a, b'],
    ],
    [
      'two defaults',
      'regions:\n  a: {driver: local, default: true}\n  b: {driver: docker, default: true}\n',
      ['line 3: regions.b.default must be true in one region only'],
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
