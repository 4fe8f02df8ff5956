import '#platform/node-version.mjs'

import { execFile } from 'node:child_process'
import { mkdtempDisposable, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { isObject } from '#openclaw/json.ts'
import { installRelease } from '#openclaw/release/install.ts'
import { knownReleases, releaseSource } from '#openclaw/releases.ts'
import { dataFolder, prepareDataFolder } from '#platform/data-folder.ts'
import { loadConfig } from '#settings/config.ts'

const timeoutMs = 60_000
const maxBytes = 16 * 1024 * 1024
/** Keywords that explain and do not validate: four fifths of the schema. */
const annotations = new Set(['$schema', 'title', 'description', 'default', 'examples'])

/** The schema without annotations. Keeps properties with the name of an annotation. */
function withoutAnnotations(schema: unknown): unknown {
  if (Array.isArray(schema)) return schema.map(withoutAnnotations)
  if (!isObject(schema)) return schema
  const kept = Object.entries(schema).filter(([keyword]) => !annotations.has(keyword))
  return Object.fromEntries(
    kept.map(([keyword, value]) => {
      if (keyword === 'enum' || keyword === 'const') return [keyword, value]
      if (keyword !== 'properties' || !isObject(value)) return [keyword, withoutAnnotations(value)]
      return [keyword, Object.fromEntries(Object.entries(value).map(([name, one]) => [name, withoutAnnotations(one)]))]
    }),
  )
}

/** The content of a release's `config-schema.json`, as the installed OpenClaw exports it. */
export async function configSchemaText(releaseFolder: string): Promise<string> {
  await using home = await mkdtempDisposable(join(tmpdir(), 'chowder-schema-'))
  const program = join(releaseFolder, 'node_modules/openclaw/openclaw.mjs')
  const names = ['HOME', 'OPENCLAW_HOME', 'OPENCLAW_STATE_DIR', 'TMPDIR']
  const env = {
    ...Object.fromEntries(names.map((name) => [name, home.path])),
    PATH: '/usr/bin:/bin',
    OPENCLAW_OFFLINE: '1',
  }
  const { stdout } = await promisify(execFile)(process.execPath, [program, 'config', 'schema'], {
    env,
    timeout: timeoutMs,
    maxBuffer: maxBytes,
  })
  const { properties, ...rest } = withoutAnnotations(JSON.parse(stdout)) as { properties: Record<string, unknown> }
  // One line per key, so that a new release shows its changes.
  const lines = Object.entries(properties).map(([key, value]) => `${JSON.stringify(key)}:${JSON.stringify(value)}`)
  return `${JSON.stringify(rest).slice(0, -1)},"properties":{\n${lines.join(',\n')}\n}}\n`
}

/** Writes `config-schema.json` of each release. Run it after a release was locked to another version of OpenClaw. */
async function main(): Promise<void> {
  const dataDir = dataFolder(loadConfig().CHOWDER_DATA_DIR)
  await prepareDataFolder(dataDir)
  const signal = new AbortController().signal
  for (const release of knownReleases()) {
    const folder = await installRelease({ dataDir, release, progress: (line) => console.log(line), signal })
    await writeFile(join(releaseSource(release), 'config-schema.json'), await configSchemaText(folder))
  }
}

if (import.meta.main) await main()
