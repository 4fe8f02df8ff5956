import { execFile } from 'node:child_process'
import { mkdtempDisposable, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { expect, test } from 'vitest'
import { credentialsIn } from '#openclaw/config/channel-credentials.ts'
import { createMask } from '#platform/mask.ts'
import { formsOf } from '../../support/canary/forms.ts'
import { newSecret } from '../../support/canary/secrets.ts'

const preload = fileURLToPath(import.meta.resolve('#openclaw/inside/mask-output.mjs'))

/** Returns what a program writes that Node.js runs after the one that masks its output. */
async function outputOf(program: string, config: unknown, startSecrets: object = {}) {
  await using folder = await mkdtempDisposable(join(tmpdir(), 'chowder-mask-'))
  const configPath = join(folder.path, 'openclaw.json')
  await writeFile(configPath, JSON.stringify(config))
  await writeFile(join(folder.path, 'secrets.json'), JSON.stringify(startSecrets))
  return await promisify(execFile)(process.execPath, ['--import', preload, '--input-type=module', '-e', program], {
    env: { OPENCLAW_CONFIG_PATH: configPath },
  })
}

const secrets = {
  channel: newSecret('channel secret', '4242:'),
  account: newSecret('channel secret'),
  skill: newSecret('skill secret', '', ' "x/y\n-----\nsecond line of a key'),
  gateway: newSecret('gateway token'),
}
const config = {
  gateway: { auth: { mode: 'token', token: secrets.gateway } },
  channels: {
    telegram: { accounts: [{ botToken: secrets.channel }], apiRoot: 'https://api.telegram.org', enabled: true },
    googlechat: { serviceAccount: JSON.stringify({ private_key: secrets.account, type: 'service_account' }) },
  },
  skills: { entries: { weather: { enabled: true, env: { WEATHER: secrets.skill, PORT: '80' } } } },
}

test('the credentials of the configuration are hidden in each form in what is written, and nothing else is', async () => {
  const forms = Object.values(secrets).flatMap((secret) => formsOf(secret).map(([form]) => form))
  const lines = [...forms.map((form) => `GET /bot${form}/getMe failed`), 'telegram: on port 80 with a token']
  const writing = `for (const line of ${JSON.stringify(lines)}) { console.log(line); console.error(line) }`
  const { stdout, stderr } = await outputOf(writing, config)
  const mask = createMask(credentialsIn(config))
  expect(stdout).toBe(lines.map((line) => `${mask(line, false)}\n`).join(''))
  expect(stderr).toBe(stdout)
  for (const form of forms) expect(stdout).not.toContain(form)
})

test('bytes are masked too, and pass as they are where nothing is hidden; and so are credentials of URLs', async () => {
  const { stdout } = await outputOf(
    `process.stdout.write(Buffer.from(${JSON.stringify(`é ${secrets.channel}\n`)}))
     process.stdout.write(Buffer.from([0xff, 0x0a]), () => console.log('via http://agent:pass@127.0.0.1:3128/'))`,
    config,
  )
  expect(stdout).toBe('é ***\n\ufffd\nvia http://***@127.0.0.1:3128/\n')
})

test('a credential that the configuration got later is hidden, and one that it had before still is', async () => {
  const next = newSecret('channel secret')
  const { stdout } = await outputOf(
    `import { rmSync, writeFileSync } from 'node:fs'
     const { OPENCLAW_CONFIG_PATH: path } = process.env
     const say = () => console.log(${JSON.stringify(secrets.channel)}, ${JSON.stringify(next)})
     say()
     writeFileSync(path, ${JSON.stringify(JSON.stringify({ channels: { x: { token: next } } }))})
     say()
     writeFileSync(path, '{')
     say()
     rmSync(path)
     say()`,
    config,
  )
  expect(stdout).toBe(`*** ${next}\n${'*** ***\n'.repeat(3)}`)
})

test('the secrets that the configuration names are hidden, and their names are not', async () => {
  const gatewayToken = newSecret('gateway token')
  const password = newSecret('relay token')
  const named = { source: 'file', provider: 'chowder', id: '/gatewayToken' }
  const path = '/agent/home/state/secrets.json'
  const { stdout } = await outputOf(
    `console.log('chowder reads /gatewayToken in ${path}', ${JSON.stringify(gatewayToken)}, ${JSON.stringify(password)})`,
    { secrets: { providers: { chowder: { source: 'file', path } } }, gateway: { auth: { token: named } } },
    { gatewayToken, proxyUrl: `http://agent:${encodeURIComponent(password)}@host:1` },
  )
  expect(stdout).toBe(`chowder reads /gatewayToken in ${path} *** ***\n`)
})

test('what a thread writes is masked as well', async () => {
  const { stdout } = await outputOf(
    `import { Worker } from 'node:worker_threads'
     new Worker(${JSON.stringify(`console.log('a', ${JSON.stringify(secrets.channel)})`)}, { eval: true })`,
    config,
  )
  expect(stdout).toBe('a ***\n')
})
