import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { defaultTier } from '#composition/settings.ts'
import { BadEnvironment, loadConfig, unknownSettings } from '#settings/config.ts'
import { Env, type Setting } from '#settings/env.ts'
import { signupMode } from '#settings/exposure.ts'

const key = Buffer.alloc(32, 7).toString('base64')

function complaints(env: NodeJS.ProcessEnv): string {
  try {
    loadConfig(env)
  } catch (error) {
    if (error instanceof BadEnvironment) return error.message
    throw error
  }
  return ''
}

describe('the environment', () => {
  test('has every documented default when it is empty', () => {
    const defaults = Object.entries<Setting>(Env.properties).filter(([, { default: value }]) => value !== undefined)
    expect(loadConfig({})).toEqual(Object.fromEntries(defaults.map(([name, { default: value }]) => [name, value])))
    expect(loadConfig({})).toMatchObject({ HOST: '127.0.0.1', PORT: 8080, SANDBOX_DRIVER: 'local' })
  })

  test('the tier of a new organization has no limit unless Stripe can sell a higher one', () => {
    const stripe = { STRIPE_SECRET_KEY: 'sk_test_1', STRIPE_WEBHOOK_SECRET: 'whsec_1' }
    expect(defaultTier(loadConfig({}))).toBe('whale')
    expect(defaultTier(loadConfig(stripe))).toBe('shrimp')
  })

  test('S6: sign-up is open by default while only this machine reaches the API, and takes a token otherwise', () => {
    const modeOf = (env: NodeJS.ProcessEnv) => signupMode(loadConfig(env))
    const local = [{}, { HOST: '::1' }, { HOST: 'localhost' }, { CHOWDER_PUBLIC_URL: 'http://127.0.0.1:8080' }]
    const reached = [
      { HOST: '0.0.0.0' },
      { HOST: '::' },
      { HOST: '10.0.0.7' },
      { HOST: 'chowder.internal' },
      { TRUST_PROXY: '1' },
      { CHOWDER_PUBLIC_URL: 'https://agents.example.com' },
      { CHOWDER_ALLOWED_HOSTS: 'localhost,chowder.internal' },
      { CHOWDER_ALLOWED_HOSTS: '*' },
    ]
    for (const env of local) {
      expect([env, modeOf(env), modeOf({ ...env, SIGNUP: 'open' })]).toEqual([env, 'open', 'open'])
    }
    for (const env of reached) {
      expect([env, modeOf(env), modeOf({ ...env, SIGNUP: 'closed' })]).toEqual([env, 'token', 'closed'])
      expect(complaints({ ...env, SIGNUP: 'open' })).toContain('Set SIGNUP to token or closed')
    }
  })

  test('an empty variable counts as unset', () => {
    expect(loadConfig({ PORT: '', DATABASE_URL: '' }).PORT).toBe(8080)
  })

  test.each([
    ['PORT', 'canary'],
    ['PORT', '65536'],
    ['PORT', '80.5'],
    ['AGENT_RESOURCES', 'memory=2048'],
    ['AGENT_RESOURCES', 'memory_mb=1'],
    ['AGENT_RESOURCES', 'pids=1.5'],
    ['SANDBOX_DRIVER', 'canary'],
    ['LOCAL_ISOLATION', 'canary'],
    ['DOCKER_NODE_IMAGE', '-a canary'],
    ['DOCKER_PUBLISH_ADDRESS', 'canary'],
    ['DOCKER_PUBLISH_ADDRESS', '0.0.0.0'],
    ['DOCKER_PUBLISH_ADDRESS', '10.1.0.256'],
    ['DOCKER_PUBLISH_ADDRESS', '10.1.0'],
    ['KUBERNETES_NAMESPACE', 'a canary'],
    ['KUBERNETES_IMAGE', 'a canary'],
    ['KUBERNETES_STORAGE_CLASS', 'a canary'],
    ['KUBERNETES_REQUEST_PERCENT', '0'],
    ['KUBERNETES_RUNTIME_CLASS', 'a canary'],
    ['LOG_LEVEL', 'canary'],
    ['DATABASE_URL', 'mysql://canary'],
    ['REDIS_URL', 'http://canary'],
    ['CHOWDER_SECRET_KEY', 'canary'],
    ['CHOWDER_PUBLIC_URL', 'canary'],
    ['CHOWDER_PUBLIC_URL', 'https://canary:port'],
    ['CHOWDER_ALLOWED_HOSTS', 'https://canary'],
    ['CHOWDER_ALLOWED_HOSTS', 'canary:8080'],
    ['CHOWDER_ALLOWED_HOSTS', '*.canary'],
    ['SIGNUP', 'canary'],
    ['CORS_ALLOWED_ORIGINS', 'canary'],
    ['CORS_ALLOWED_ORIGINS', '*'],
    ['CORS_ALLOWED_ORIGINS', 'https://canary/path'],
    ['CORS_ALLOWED_ORIGINS', 'https://app.example.com,https://canary:99999'],
    ['RELAY_ROLE', 'canary'],
    ['RELAY_PORT', 'canary'],
    ['RELAY_URL', 'https://canary/path'],
    ['EGRESS_ALLOWED_HOSTS', 'a canary'],
    ['ANTHROPIC_BASE_URL', 'canary'],
    ['OPENAI_BASE_URL', 'canary'],
    ['GEMINI_BASE_URL', 'canary'],
    ['OPENCLAW_MIN_VERSION', 'canary'],
    ['CLAWHUB_REGISTRY', 'canary'],
    ['STRIPE_SECRET_KEY', 'canary'],
    ['STRIPE_WEBHOOK_SECRET', 'canary'],
  ])('a bad %s is named, its value is not shown', (name, value) => {
    const message = complaints({ [name]: value, CHOWDER_SECRET_KEY: name === 'CHOWDER_SECRET_KEY' ? value : key })
    expect(message).toContain(name)
    expect(message).not.toContain('canary')
  })

  test.each([
    ['DATABASE_URL', 'mysql://h/d', 'must begin with postgres:// or postgresql://'],
    ['REDIS_URL', 'localhost:6379', 'must begin with redis:// or rediss://'],
    ['OPENAI_BASE_URL', 'localhost', 'must be a URL that begins with http:// or https://'],
    [
      'AGENT_RESOURCES',
      'memory_mb=1024',
      'must have numbers for some of memory_mb, cpus, pids and disk_mb, such as ' +
        'memory_mb=2048,cpus=2,pids=512,disk_mb=10240; memory_mb must be at least 1792: ' +
        'OpenClaw needs that to use a tool',
    ],
  ])('says in words what %s must be', (name, value, rule) => {
    expect(complaints({ [name]: value, CHOWDER_SECRET_KEY: key })).toBe(`bad environment:\n  ${name} ${rule}`)
  })

  test('every rule is in words, not a pattern', () => {
    for (const name of Object.keys(Env.properties)) expect(complaints({ [name]: '\n' })).not.toContain('must match')
  })

  test.each([
    ['CHOWDER_DATADIR', 'CHOWDER_DATA_DIR'],
    ['CHOWDER_DATA_DRI', 'CHOWDER_DATA_DIR'],
    ['CHOWDER_HOST', 'HOST'],
    ['CHOWDER_LOG_LEVEL', 'LOG_LEVEL'],
    ['CHOWDER_SECRET_KEY_FIL', 'CHOWDER_SECRET_KEY_FILE'],
    ['CHOWDER_PORT', 'PORT'], // which docker-compose.yml knows, and this program does not
    ['DATABASE_URI', 'DATABASE_URL'],
    ['METRICS_PRT', 'METRICS_PORT'],
  ])('%s is no setting: did you mean %s?', (name, meant) => {
    expect(unknownSettings({ [name]: 'canary' })).toEqual([`${name} is no setting of Chowder: did you mean ${meant}?`])
  })

  test('an unknown name of ours is told, one of another program is not', () => {
    expect(unknownSettings({ CHOWDER_COLOUR: 'canary' })).toEqual([
      'CHOWDER_COLOUR is no setting of Chowder. docs/settings.md has them all.',
    ])
    const others = { PATH: '/', POST: '1', HOSTNAME: 'a', DATABASE: 'a', LOG_FILE: 'a', OPENAI_API_KEY: 'a' }
    expect(unknownSettings({ ...others, DATABASE_URL: 'a', CHOWDER_DOMAIN: 'a', CHOWDER_VERSION: '1' })).toEqual([])
  })

  test('reports all bad variables at once, one line each', () => {
    const message = complaints({ PORT: 'x', LOG_LEVEL: 'loud', DATABASE_URL: 'mysql://', SANDBOX_DRIVER: 'boss' })
    expect(message.split('\n').slice(1)).toHaveLength(5) // with the secret key that DATABASE_URL asks for
  })

  test('requires CHOWDER_SECRET_KEY with DATABASE_URL, and says how to make one', () => {
    expect(complaints({ DATABASE_URL: 'postgres://x/y' })).toContain('openssl rand -base64 32')
    expect(complaints({ DATABASE_URL: 'postgres://x/y', CHOWDER_SECRET_KEY: key })).toBe('')
  })

  describe('secrets in files', () => {
    let folder: string
    beforeAll(() => {
      folder = mkdtempSync(join(tmpdir(), 'chowder-config-'))
    })
    afterAll(() => rmSync(folder, { recursive: true }))
    const inFile = (name: string, content: string) => {
      writeFileSync(join(folder, name), content)
      return join(folder, name)
    }

    test('each secret may be in a file, with or without the end of a line', () => {
      const env = {
        DATABASE_URL_FILE: inFile('database', 'postgres://chowder:canary@db/chowder\n'),
        CHOWDER_SECRET_KEY_FILE: inFile('key', key),
        REDIS_URL_FILE: inFile('redis', 'redis://:canary@redis:6379\r\n'),
      }
      expect(loadConfig(env)).toMatchObject({
        DATABASE_URL: 'postgres://chowder:canary@db/chowder',
        CHOWDER_SECRET_KEY: key,
        REDIS_URL: 'redis://:canary@redis:6379',
      })
      const two = `${key}\n${Buffer.alloc(32, 8).toString('base64')}`
      expect(loadConfig({ CHOWDER_SECRET_KEY_FILE: inFile('keys', `${two}\n`) }).CHOWDER_SECRET_KEY).toBe(two)
    })

    test('a secret that is missing, empty, bad or set twice is named without its value', () => {
      const message = complaints({
        DATABASE_URL_FILE: join(folder, 'none'),
        CHOWDER_SECRET_KEY_FILE: inFile('bad', 'canary'),
        REDIS_URL_FILE: inFile('empty', ' \n'),
        STRIPE_SECRET_KEY: 'sk_canary',
        STRIPE_SECRET_KEY_FILE: inFile('stripe', 'sk_canary'),
      })
      expect(message).toContain(
        `DATABASE_URL_FILE names ${join(folder, 'none')}, which does not exist. Correct the path`,
      )
      expect(message).toContain('CHOWDER_SECRET_KEY must be 32 bytes in base64')
      expect(message).toContain('REDIS_URL_FILE names')
      expect(message).toContain('STRIPE_SECRET_KEY and STRIPE_SECRET_KEY_FILE are both set')
      expect(message).not.toContain('canary')
    })
  })

  test.each(['password', 'changeme', 'change-me', 'CHANGE_ME', '<password>', 'your-password', 'placeholder', 'secret'])(
    'refuses a placeholder as password: %s',
    (password) => {
      const message = complaints({ DATABASE_URL: `postgres://chowder:${password}@db/chowder`, CHOWDER_SECRET_KEY: key })
      expect(message).toContain('DATABASE_URL has a placeholder as its password')
      const real = { DATABASE_URL: `postgres://chowder:my-${password}1@db/chowder`, CHOWDER_SECRET_KEY: key }
      expect(complaints(real)).toBe('')
    },
  )

  test('refuses a key of zeros', () => {
    expect(complaints({ CHOWDER_SECRET_KEY: Buffer.alloc(32).toString('base64') })).toContain('is a placeholder')
  })

  test('requires both settings of Stripe or none', () => {
    const all = { STRIPE_SECRET_KEY: 'sk_test_1', STRIPE_WEBHOOK_SECRET: 'whsec_1' }
    expect(loadConfig(all)).toMatchObject(all)
    for (const missing of Object.keys(all)) {
      expect(complaints({ ...all, [missing]: '' })).toContain(`${missing} is required with STRIPE_`)
    }
  })
})
