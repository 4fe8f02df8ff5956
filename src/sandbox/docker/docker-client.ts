import Docker from 'dockerode'
import pTimeout from 'p-timeout'
import { InstallError } from '#errors/install-error.ts'
import { StartupError } from '#errors/startup-error.ts'
import type { Logger } from '#platform/log.ts'
import { SandboxAbsentError, SandboxCapacityError, SandboxPathError, SandboxUnavailableError } from '#sandbox/driver.ts'
import { isLoopback } from '#settings/exposure.ts'

/** Longer than the slowest observed call of dockerd on a busy host. */
const usualDeadlineMs = 30_000
const pingDeadlineMs = 5000

interface CallOptions {
  deadlineMs?: number
}

/** Calls of dockerd, each with a deadline. */
export interface DockerClient {
  /** The sentence for operators while dockerd is unreachable; null when it answers within 5 s. */
  outage(signal: AbortSignal): Promise<string | null>
  /**
   * Makes calls of dockerd, which get the signal that ends them. Throws the signal's reason, SandboxCapacityError on a
   * full disk, the InstallError of the calls, and SandboxUnavailableError for every other failure and past the deadline
   * (30 s by default): the call may have had its effect or not.
   */
  call<T>(
    signal: AbortSignal,
    calls: (docker: Docker, abortSignal: AbortSignal) => Promise<T>,
    options?: CallOptions,
  ): Promise<T>
  /** The same; returns null when dockerd answers one of these HTTP statuses. */
  callUnless<T>(
    statuses: readonly number[],
    signal: AbortSignal,
    calls: (docker: Docker, abortSignal: AbortSignal) => Promise<T>,
    options?: CallOptions,
  ): Promise<T | null>
}

/** The certificates and the key of a connection with TLS, each in PEM. */
export interface DockerTls {
  ca: Buffer
  cert: Buffer
  key: Buffer
}

/** The address of dockerd. */
export interface DockerdAddress {
  /** The value of DOCKER_HOST: `unix:///path` or `tcp://host:port`. */
  host: string
  /** For `tcp://`; null for a connection without TLS, which is permitted only to this machine. */
  tls: DockerTls | null
}

type Connection = { protocol: 'http' | 'https' } & ({ socketPath: string } | { host: string; port: number })

/**
 * Parses an address of dockerd. Throws a StartupError for an invalid one, and for another machine without TLS:
 * everybody who reaches that port, or the network on the way, would have the rights of root there.
 */
export function connectionTo({ host, tls }: DockerdAddress): Connection & Partial<DockerTls> {
  const [, path] = /^unix:\/\/(\/.+)$/.exec(host) ?? []
  if (path) return { protocol: 'http', socketPath: path }
  const [, name, port] = /^tcp:\/\/([^/:]+):(\d+)\/?$/.exec(host) ?? []
  if (name && port) {
    if (tls) return { protocol: 'https', host: name, port: Number(port), ...tls }
    if (isLoopback(name)) return { protocol: 'http', host: name, port: Number(port) }
    throw new StartupError(
      `DOCKER_HOST is ${host}, a dockerd on another machine, without TLS: whoever reaches it there is root. Have dockerd listen with --tlsverify, and set DOCKER_CERT_PATH to the folder of ca.pem, cert.pem and key.pem. Or tunnel its socket to this machine with ssh -L, and set DOCKER_HOST to the unix:// path here.`,
    )
  }
  throw new StartupError(
    'DOCKER_HOST must be unix:///path/of/a/socket or tcp://host:port: set it to where dockerd listens, or leave it out for unix:///var/run/docker.sock.',
  )
}

/**
 * Sends the options of a create in the body only. Dockerode would send them in the query too, which is too small for
 * them.
 */
export function inBody<T extends object>(options: T): T {
  const { name, ...body } = options as T & { name?: string }
  return { _query: name === undefined ? {} : { name }, _body: body } as unknown as T
}

const statusOf = (error: unknown) => (error as { statusCode?: number }).statusCode ?? 0

const startIt = 'start it, or set DOCKER_HOST. Agents are created once it answers.'

/** OpenSSL's names for a rejected certificate. */
const untrusted = /^(UNABLE_TO_|SELF_SIGNED_|DEPTH_ZERO_|CERT_|ERR_TLS_CERT_ALTNAME_INVALID$)/

/** The reason why dockerd is unreachable, and the operator's remedy; null for an unrelated error. */
function remedy(error: unknown): string | null {
  const { code = '', syscall, message = '' } = error as NodeJS.ErrnoException
  if (syscall === 'connect' && code === 'EACCES')
    return "permission denied. Let Chowder's user use the socket, as the group docker may, or set DOCKER_HOST."
  if (untrusted.test(code))
    return 'its certificate is not trusted. ca.pem in DOCKER_CERT_PATH must be the authority that signed it, and it must be valid for the host in DOCKER_HOST.'
  if (/^ERR_SSL_.*_ALERT_/.test(code))
    return 'it refuses the certificate in DOCKER_CERT_PATH. cert.pem must be valid, and signed by the authority of its --tlscacert.'
  if (code === 'EPROTO' || /^ERR_SSL_(WRONG_VERSION_NUMBER|PACKET_LENGTH_TOO_LONG)/.test(code))
    return 'it does not speak TLS. Have it listen with --tlsverify, or remove DOCKER_CERT_PATH.'
  if (statusOf(error) === 400 && /HTTP request to an HTTPS server/.test(message))
    return 'it demands TLS. Set DOCKER_CERT_PATH to the folder of ca.pem, cert.pem and key.pem.'
  return syscall === 'connect' ? startIt : null
}

const unreachable = (host: string, error: unknown): string =>
  `dockerd cannot be reached at ${host}: ${remedy(error) ?? startIt}`

/**
 * Creates a client of dockerd without calling it. Logs once when dockerd becomes unreachable, and once when it answers
 * again. Throws a StartupError for a bad address.
 */
export function createDockerClient(address: DockerdAddress, log?: Pick<Logger, 'info' | 'warn'>): DockerClient {
  const { host } = address
  // All options that Dockerode would otherwise read from the environment.
  const docker = new Docker({ host: '', ...connectionTo(address) })
  let isAway = false

  function recordAnswer(): void {
    if (isAway) log?.info(`dockerd answers again at ${host}`)
    isAway = false
  }

  /** Returns whether the outage was logged. */
  function recordAbsence(error: unknown): boolean {
    if (!isAway) log?.warn(unreachable(host, error))
    isAway = true
    return log !== undefined
  }

  async function callUnless<T>(
    statuses: readonly number[],
    signal: AbortSignal,
    calls: (docker: Docker, abortSignal: AbortSignal) => Promise<T>,
    { deadlineMs = usualDeadlineMs }: CallOptions = {},
  ): Promise<T | null> {
    signal.throwIfAborted()
    const deadline = new AbortController()
    const timer = setTimeout(() => deadline.abort(new Error(`dockerd did not answer in ${deadlineMs} ms`)), deadlineMs)
    const limit = AbortSignal.any([signal, deadline.signal])
    try {
      const answer = await pTimeout(calls(docker, limit), { milliseconds: Number.POSITIVE_INFINITY, signal: limit })
      recordAnswer()
      return answer
    } catch (error) {
      signal.throwIfAborted()
      if (statusOf(error) > 0 && remedy(error) === null) recordAnswer()
      if (statuses.includes(statusOf(error))) return null
      if (/no space left on device|disk quota exceeded/i.test(String(error)))
        throw new SandboxCapacityError('the disk has no room left for this sandbox', { cause: error })
      if (error instanceof SandboxPathError || error instanceof SandboxAbsentError) throw error
      if (error instanceof InstallError) throw error
      const cause = deadline.signal.aborted ? deadline.signal.reason : error
      throw new SandboxUnavailableError(cause, { isLogged: remedy(error) !== null && recordAbsence(error) })
    } finally {
      clearTimeout(timer)
    }
  }

  return {
    async outage(signal) {
      try {
        await callUnless([], signal, (dockerd) => dockerd.ping(), { deadlineMs: pingDeadlineMs })
        return null
      } catch (error) {
        signal.throwIfAborted()
        const { cause } = error as Error
        // A proxy in front of dockerd may forbid ping, but not other calls.
        const isRefused = Math.floor(statusOf(cause) / 100) === 4 && remedy(cause) === null
        return isRefused ? null : unreachable(host, cause)
      }
    },
    callUnless,
    call: async (signal, calls, options) =>
      (await callUnless([], signal, calls, options)) as Awaited<ReturnType<typeof calls>>,
  }
}
