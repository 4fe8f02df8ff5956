import { execFile } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import type { ConnectionOptions } from 'node:tls'
import { promisify } from 'node:util'
import { parse } from 'yaml'

/** The API of a cluster, and the credentials for it. */
export interface Cluster {
  /** The URL of the API, without a trailing slash. */
  server: string
  /** The TLS options and the headers of a call. Read for each call, because tokens and certificates are renewed. */
  access(): Promise<Access>
}

interface Access {
  tls: Pick<ConnectionOptions, 'ca' | 'cert' | 'key' | 'rejectUnauthorized' | 'servername'>
  headers: Record<string, string>
}

/** The folder of a pod's credentials. */
export const serviceAccount = '/var/run/secrets/kubernetes.io/serviceaccount'
const execTimeoutMs = 30_000
/** A credential of a program is renewed before it expires. */
const renewalMs = 60_000

const bearer = (token: string) => ({ authorization: `Bearer ${token.trim()}` })

/** The cluster that this process runs in, with the service account of its pod. */
export function ownCluster(env: NodeJS.ProcessEnv = process.env): Cluster {
  const { KUBERNETES_SERVICE_HOST: host = '', KUBERNETES_SERVICE_PORT: port = '443' } = env
  const read = (name: string) => readFile(join(serviceAccount, name), 'utf8')
  return {
    server: `https://${host.includes(':') ? `[${host}]` : host}:${port}`,
    access: async () => ({ tls: { ca: await read('ca.crt') }, headers: bearer(await read('token')) }),
  }
}

/** The used parts of a kubeconfig. */
interface Kubeconfig {
  'current-context'?: string
  contexts?: { name: string; context: { cluster: string; user: string } }[]
  clusters?: { name: string; cluster: Partial<Record<string, string | boolean>> }[]
  users?: { name: string; user: Partial<Record<string, string>> & { exec?: CredentialProgram } }[]
}

interface CredentialProgram {
  apiVersion: string
  command: string
  args?: string[]
  env?: { name: string; value: string }[]
}

interface Credential {
  token?: string
  clientCertificateData?: string
  clientKeyData?: string
  expirationTimestamp?: string
}

/** Runs the credential program of a kubeconfig, such as that of a cloud, and again before the credentials expire. */
function credentialsOf({ apiVersion, command, args = [], env = [] }: CredentialProgram, folder: string) {
  let known: Credential = { expirationTimestamp: new Date(0).toISOString() }
  return async (): Promise<Credential> => {
    const { expirationTimestamp: end } = known
    if (end === undefined || Date.parse(end) - renewalMs > Date.now()) return known
    const info = { apiVersion, kind: 'ExecCredential', spec: { interactive: false } }
    const variables = Object.fromEntries(env.map(({ name, value }) => [name, value]))
    const { stdout } = await promisify(execFile)(command.includes('/') ? resolve(folder, command) : command, args, {
      env: { ...process.env, ...variables, KUBERNETES_EXEC_INFO: JSON.stringify(info) },
      timeout: execTimeoutMs,
    })
    known = (JSON.parse(stdout) as { status: Credential }).status
    return known
  }
}

/**
 * The cluster of the current context of a kubeconfig. Throws an Error if there is none, or it requires a feature of
 * kubectl: a proxy, or an `auth-provider`.
 */
export async function clusterOf(kubeconfig: string): Promise<Cluster> {
  const folder = dirname(resolve(kubeconfig))
  const parsed: Kubeconfig = parse(await readFile(kubeconfig, 'utf8')) ?? {}
  const context = parsed.contexts?.find(({ name }) => name === parsed['current-context'])?.context
  const cluster = parsed.clusters?.find(({ name }) => name === context?.cluster)?.cluster
  const user = parsed.users?.find(({ name }) => name === context?.user)?.user
  if (typeof cluster?.server !== 'string' || !user) throw new Error('no current context with a cluster and a user')
  if (cluster['proxy-url'] || user['auth-provider'])
    throw new Error('a proxy-url or an auth-provider, which Chowder does not use')

  /** The text of a field: base64 in the file itself, or the path of another file. */
  async function textOf(data: unknown, path: unknown): Promise<string | undefined> {
    if (typeof data === 'string') return Buffer.from(data, 'base64').toString()
    return typeof path === 'string' ? await readFile(resolve(folder, path), 'utf8') : undefined
  }

  const runProgram = user.exec && credentialsOf(user.exec, folder)
  return {
    server: cluster.server.replace(/\/$/, ''),
    async access() {
      const [ca, cert, key, fileToken, given] = await Promise.all([
        textOf(cluster['certificate-authority-data'], cluster['certificate-authority']),
        textOf(user['client-certificate-data'], user['client-certificate']),
        textOf(user['client-key-data'], user['client-key']),
        textOf(undefined, user.tokenFile),
        runProgram?.(),
      ])
      const tls = {
        ca,
        cert: given?.clientCertificateData ?? cert,
        key: given?.clientKeyData ?? key,
        rejectUnauthorized: cluster['insecure-skip-tls-verify'] === true ? false : undefined,
        servername: cluster['tls-server-name'] as string | undefined,
      }
      const token = given?.token ?? fileToken ?? user.token
      const basic = user.username && `Basic ${Buffer.from(`${user.username}:${user.password}`).toString('base64')}`
      return {
        tls: Object.fromEntries(Object.entries(tls).filter(([, value]) => value !== undefined)),
        headers: token ? bearer(token) : basic ? { authorization: basic } : {},
      }
    },
  }
}
