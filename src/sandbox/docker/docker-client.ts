import Docker from 'dockerode'
import pTimeout from 'p-timeout'
import { StartupError } from '#platform/startup-error.ts'
import { SandboxAbsentError, SandboxCapacityError, SandboxPathError, SandboxUnavailableError } from '#sandbox/driver.ts'

/** Longer than dockerd was seen to need on a busy host for any call that does not wait by itself. */
const usualDeadlineMs = 30_000

interface CallOptions {
  deadlineMs?: number
}

/** Calls of dockerd, none of which waits for ever. */
export interface DockerClient {
  /**
   * Makes calls of dockerd, which are given the signal that ends them. Throws the signal's reason, SandboxCapacityError
   * on a full disk, and SandboxUnavailableError for every other failure and past the deadline (30 s by default): the
   * call may have had its effect or not.
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

/** Parses DOCKER_HOST. Throws a StartupError when it is no address. */
export function addressOf(host: string): { socketPath: string } | { host: string; port: number } {
  const [, path] = /^unix:\/\/(\/.+)$/.exec(host) ?? []
  if (path) return { socketPath: path }
  const [, name, port] = /^tcp:\/\/([^/:]+):(\d+)\/?$/.exec(host) ?? []
  if (name && port) return { host: name, port: Number(port) }
  throw new StartupError(
    'DOCKER_HOST must be unix:///path/of/a/socket or tcp://host:port: set it to where dockerd listens, or leave it out for unix:///var/run/docker.sock.',
  )
}

/**
 * Sends the options of a create in the body only. Dockerode would send them in the query too, which has no room for
 * them.
 */
export function inBody<T extends object>(options: T): T {
  const { name, ...body } = options as T & { name?: string }
  return { _query: name === undefined ? {} : { name }, _body: body } as unknown as T
}

const statusOf = (error: unknown) => (error as { statusCode?: number }).statusCode ?? 0

/** Creates a client of dockerd, which calls nothing yet. Throws a StartupError when `host` is no address. */
export function createDockerClient(host: string): DockerClient {
  // Every option that Dockerode would else read from the environment.
  const docker = new Docker({ protocol: 'http', host: '', ...addressOf(host) })

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
      return await pTimeout(calls(docker, limit), { milliseconds: Number.POSITIVE_INFINITY, signal: limit })
    } catch (error) {
      signal.throwIfAborted()
      if (statuses.includes(statusOf(error))) return null
      if (/no space left on device|disk quota exceeded/i.test(String(error)))
        throw new SandboxCapacityError('the disk has no room left for this sandbox', { cause: error })
      if (error instanceof SandboxPathError || error instanceof SandboxAbsentError) throw error
      throw new SandboxUnavailableError(deadline.signal.aborted ? deadline.signal.reason : error)
    } finally {
      clearTimeout(timer)
    }
  }

  return {
    callUnless,
    call: async (signal, calls, options) =>
      (await callUnless([], signal, calls, options)) as Awaited<ReturnType<typeof calls>>,
  }
}
