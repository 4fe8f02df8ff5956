import { randomUUID } from 'node:crypto'
import { chmod, mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pino } from 'pino'
import { afterAll, expect, test } from 'vitest'
import { openRegions } from '#composition/regions.ts'
import { createDriver, openSandboxes } from '#composition/sandboxes.ts'
import { defaultRelease } from '#openclaw/releases.ts'
import { SandboxUnavailableError } from '#sandbox/driver.ts'
import { loadConfig } from '#settings/config.ts'
import { cloneDatabase } from '../../support/test-database.ts'

const database = await cloneDatabase()
const folder = await mkdtemp(join(tmpdir(), 'chowder-regions-'))
await chmod(folder, 0o711)
await mkdir(join(folder, 'data'), { mode: 0o711 })
const file = join(folder, 'chowder.yaml')
afterAll(async () => {
  await database.drop()
  await rm(folder, { recursive: true })
})

const log = pino({ level: 'silent' })

async function open(text: string, env: NodeJS.ProcessEnv = {}) {
  await writeFile(file, text)
  const config = loadConfig({ CHOWDER_CONFIG_FILE: file, ...env })
  return openRegions({ config, dataDir: join(folder, 'data'), db: database.db, log }, openSandboxes(createDriver))
}

const three = (options: { default: 'east' | 'west' }) => `regions:
  east:
    driver: local
    isolation: none
    storage: ${folder}/east
    ${options.default === 'east' ? 'default: true' : ''}
  west:
    driver: local
    isolation: none
    storage: ${folder}/west
    resources: { memory_mb: 4096 }
    ${options.default === 'west' ? 'default: true' : ''}
  docks:
    driver: docker
    host: unix://${folder}/docker.sock
`

test('one Chowder has local regions with a folder each, and one of Docker', async () => {
  const regions = await open(three({ default: 'east' }))
  expect(regions.all().map(({ region, sandboxes }) => [region, sandboxes.name])).toEqual([
    ['east', 'local'],
    ['west', 'local'],
    ['docks', 'docker'],
  ])
  const signal = AbortSignal.timeout(20_000)
  const ids: Record<string, string> = {}
  const users = new Set<number | undefined>()
  for (const name of ['east', 'west']) {
    const id = randomUUID()
    ids[name] = id
    await regions.named(name).sandboxes.create(
      {
        ...{ id, organizationId: randomUUID(), release: defaultRelease, labels: {} },
        ...{ command: () => ['node'], env: () => ({}) },
        resources: { memoryMb: 512, cpus: 1, pids: 64, diskMb: 100 },
      },
      signal,
    )
    const { paths } = await regions.named(name).sandboxes.observe(id, signal)
    users.add(paths?.port)
  }
  expect(users.size).toBe(2) // no port of the host twice, though each region has a folder of its own
  expect(await readdir(join(folder, 'east', 'sandboxes'))).toEqual([ids.east])
  expect(await readdir(join(folder, 'west', 'sandboxes'))).toEqual([ids.west])
  expect(regions.named('west').resources.defaults.memory_mb).toBe(4096)
  expect(regions.named('east').resources.defaults.memory_mb).toBe(2048)
  await expect(regions.named('docks').sandboxes.observe(randomUUID(), signal)).rejects.toThrow(SandboxUnavailableError)
})

test('rows without a region stay in the first default region when another one becomes the default', async () => {
  const before = await open(three({ default: 'east' }))
  const ofBefore = { region: null, sandboxDriver: 'local' }
  expect([before.default().region, before.of(ofBefore).region]).toEqual(['east', 'east'])
  const after = await open(three({ default: 'west' }))
  expect([after.default().region, after.of(ofBefore).region, after.shown(ofBefore)]).toEqual(['west', 'east', 'east'])
  expect(() => after.of({ region: 'docks', sandboxDriver: 'local' })).toThrow(SandboxUnavailableError)
})

test('a worker serves the regions that CHOWDER_REGIONS names', async () => {
  const served = async (names: string) =>
    (await open(three({ default: 'east' }), { CHOWDER_REGIONS: names })).served().map(({ region }) => region)
  expect(await served('docks, east')).toEqual(['east', 'docks'])
  expect(await served('')).toEqual(['east', 'west', 'docks'])
  await expect(served('north')).rejects.toThrow(
    'CHOWDER_REGIONS names north, which is no region. There are: east, west, docks.',
  )
})

test('a fault of a region names it', async () => {
  const text = three({ default: 'east' }).replace('isolation: none', 'isolation: jail')
  await expect(open(text, { RELAY_URL: 'http://relay' })).rejects.toThrow(
    /^region east: LOCAL_ISOLATION is jail, and agents cannot be put into jails here/,
  )
})
