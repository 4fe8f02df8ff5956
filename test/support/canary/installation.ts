import { execFile } from 'node:child_process'
import { access, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import pg from 'pg'
import { inject } from 'vitest'
import { reachEmbeddedPostgres } from '#database/embedded.ts'
import { type Places, requireNoSecrets } from './search.ts'
import { noteSecret } from './secrets.ts'

const run = promisify(execFile)

/** What the processes of an installation have written so far, by its data folder. */
const outputs = new Map<string, (() => string)[]>()

/** Settings of an operator that are secrets. */
const settings = { CHOWDER_SECRET_KEY: 'secret key', STRIPE_SECRET_KEY: 'billing secret', STRIPE_WEBHOOK_SECRET: 'billing secret' } as const // biome-ignore format: short

/** Notes the secrets of a process of Chowder, and that a search of its installation is to read what it writes. */
export function noteProcess(dataDir: string, env: Readonly<Record<string, string>>, output: () => string): void {
  for (const [name, kind] of Object.entries(settings))
    for (const value of (env[name] ?? '').split(',')) noteSecret(kind, value)
  outputs.set(dataDir, [...(outputs.get(dataDir) ?? []), output])
}

/** All databases of the PostgreSQL that runs in a data folder; none while none does. */
async function embeddedDatabases(dataDir: string): Promise<pg.PoolConfig[]> {
  const hasCluster = await access(join(dataDir, 'postgres/data')).then(() => true, () => false) // biome-ignore format: short
  const connection = hasCluster ? await reachEmbeddedPostgres(dataDir) : undefined
  if (!connection) return []
  const client = new pg.Client({ ...connection, database: 'postgres' })
  await client.connect()
  try {
    const { rows } = await client.query<{ database: string }>(
      'SELECT datname AS database FROM pg_database WHERE NOT datistemplate',
    )
    return rows.map(({ database }) => ({ ...connection, database }))
  } finally {
    await client.end()
  }
}

/** The folders in which a dockerd has the files and the logs of containers. */
export async function dockerFolders(dockerHost: string): Promise<string[]> {
  const { stdout } = await run('docker', ['--host', dockerHost, 'info', '--format', '{{.DockerRootDir}}'])
  return ['volumes', 'containers'].map((name) => join(stdout.trim(), name))
}

/**
 * Throws an error when a secret stands in the clear anywhere in an installation: in its data folder with the sandboxes,
 * its own database while that runs, what its processes have written, Redis, and the containers of its agents.
 */
export async function searchInstallation(dataDir: string, more: Places = {}): Promise<void> {
  const own = { 'secret-key': 'secret key', 'database-password': 'password' } as const
  for (const [file, kind] of Object.entries(own))
    noteSecret(kind, (await readFile(join(dataDir, file), 'utf8').catch(() => '')).trim())
  const dockerHost = inject('agentDockerHost') ?? null
  await requireNoSecrets({
    folders: [dataDir, ...(dockerHost === null ? [] : await dockerFolders(dockerHost)), ...(more.folders ?? [])],
    databases: [...(await embeddedDatabases(dataDir)), ...(more.databases ?? [])],
    redisUrl: inject('redisUrl') ?? null,
    texts: { output: (outputs.get(dataDir) ?? []).map((output) => output()).join('\n'), ...more.texts },
  })
}
