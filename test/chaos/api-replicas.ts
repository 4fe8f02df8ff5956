import { randomBytes } from 'node:crypto'
import { chmod, mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type pg from 'pg'
import { newSecret, noteAnswer, noteRequest } from '../support/canary/secrets.ts'
import { type ChowderProcess, removeDataDir, startChowder } from '../support/chowder-process.ts'
import type { Method } from '../support/operations.ts'

/** A port that nobody listens on: a refused connection is no verdict on a provider's key. */
const nowhere = 'http://127.0.0.1:9'
const requestTimeoutMs = 90_000

export interface Answer {
  status: number
  headers: Record<string, string>
  // biome-ignore lint/suspicious/noExplicitAny: a test reads what it expects
  body: any
  /** From the call to the last byte of its answer. */
  ms: number
}

/** A real API process of its own, beside others on one database. */
export interface Replica extends ChowderProcess {
  /** A text as body is sent as it is. Throws when there is no whole answer. */
  call(
    method: Method,
    path: string,
    options?: { key?: string; body?: unknown; headers?: Record<string, string> },
  ): Promise<Answer>
}

/** The common options of all processes of one installation. */
export interface Installation {
  dataDir: string
  databaseUrl: string
  secretKey: Buffer
  env?: Record<string, string>
}

/** The DATABASE_URL of a database. */
export function databaseUrl({ connectionString, host = '', port, user, password, database }: pg.PoolConfig): string {
  if (connectionString !== undefined) return connectionString
  const login = `${user}:${encodeURIComponent(String(password))}`
  return `postgresql://${login}@localhost:${port}/${database}?host=${encodeURIComponent(host)}`
}

/** An installation with a data folder of its own, which is the caller's to remove. */
export async function makeInstallation(connection: pg.PoolConfig): Promise<Installation> {
  const dataDir = await mkdtemp(join(tmpdir(), 'chowder-replicas-'))
  await chmod(dataDir, 0o711) // agents run as other users
  return { dataDir, databaseUrl: databaseUrl(connection), secretKey: randomBytes(32) }
}

/** Starts a process of an installation in a role, without limits on requests, as an operator does. */
export const startRole = (role: 'api' | 'worker', { dataDir, databaseUrl, secretKey, env }: Installation) =>
  startChowder({
    dataDir,
    role,
    env: {
      DATABASE_URL: databaseUrl,
      CHOWDER_SECRET_KEY: secretKey.toString('base64'),
      ANTHROPIC_BASE_URL: nowhere,
      RATE_LIMIT_PER_MINUTE: '0',
      WARM_POOL: '0',
      ...env,
    },
  })

const parse = (text: string, type: string | null) => (type?.includes('json') && text !== '' ? JSON.parse(text) : text)

/** Starts an API process of an installation. */
export async function startReplica(installation: Installation): Promise<Replica> {
  const started = await startRole('api', installation)
  return {
    ...started,
    async call(method, path, { key, body, headers } = {}) {
      const startedAt = performance.now()
      noteRequest(path, { ...(key !== undefined && { authorization: `Bearer ${key}` }), ...headers }, body)
      const response = await fetch(`${started.url}${path}`, {
        method,
        headers: {
          ...(body !== undefined && { 'content-type': 'application/json' }),
          ...(key !== undefined && { authorization: `Bearer ${key}` }),
          ...headers,
        },
        ...(body !== undefined && { body: typeof body === 'string' ? body : JSON.stringify(body) }),
        signal: AbortSignal.timeout(requestTimeoutMs),
      })
      const text = await response.text()
      noteAnswer(text)
      return {
        status: response.status,
        headers: Object.fromEntries(response.headers),
        body: parse(text, response.headers.get('content-type')),
        ms: performance.now() - startedAt,
      }
    },
  }
}

/** Starts API processes of one installation. `close` ends them and whatever else runs in its data folder. */
export async function startReplicas(count: number, connection: pg.PoolConfig, env?: Installation['env']) {
  const installation = { ...(await makeInstallation(connection)), ...(env && { env }) }
  const replicas: Replica[] = []
  const close = async () => {
    await Promise.all(replicas.map((replica) => replica.kill('SIGKILL')))
    await removeDataDir(installation.dataDir)
  }
  try {
    while (replicas.length < count) replicas.push(await startReplica(installation))
  } catch (error) {
    await close()
    throw error
  }
  return { replicas, secretKey: installation.secretKey, close }
}

/** A new organization with a key for Anthropic, and its API key. */
export async function signUp({ call }: Pick<Replica, 'call'>): Promise<{ id: string; key: string }> {
  const { status, body } = await call('POST', '/v1/organization/signup', { body: { name: 'Acme' } })
  if (status !== 201) throw new Error(`signup: ${status} ${JSON.stringify(body)}`)
  const key: string = body.api_key
  const patched = await call('PATCH', '/v1/organization', {
    key,
    body: { model_api_keys: { anthropic: newSecret('provider key', 'sk-') } },
  })
  if (patched.status !== 200) throw new Error(`provider key: ${patched.status} ${JSON.stringify(patched.body)}`)
  return { id: body.organization.id, key }
}
