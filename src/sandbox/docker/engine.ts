import Docker from 'dockerode'
import { StartupError } from '#platform/startup-error.ts'
import { SandboxAbsentError, SandboxCapacityError, SandboxPathError, SandboxUnavailableError } from '#sandbox/driver.ts'

/** Longer than dockerd was seen to need for anything on a busy host but for what waits by itself. */
const usualDeadlineMs = 30_000

interface CallOptions {
  deadlineMs?: number
}

/** dockerd, asked so that no call waits for ever. */
export interface DockerClient {
  /**
   * Carries out calls of dockerd, which get the signal that ends them. Throws the caller's own reason,
   * SandboxCapacityError on a full disk, and SandboxUnavailableError for all else, also past the deadline (30 s unless
   * said otherwise): what became of the call is unknown then.
   */
  call<T>(
    signal: AbortSignal,
    calls: (docker: Docker, abortSignal: AbortSignal) => Promise<T>,
    options?: CallOptions,
  ): Promise<T>
  /** The same, but null when dockerd answers one of these HTTP statuses. */
  callUnless<T>(
    statuses: readonly number[],
    signal: AbortSignal,
    calls: (docker: Docker, abortSignal: AbortSignal) => Promise<T>,
    options?: CallOptions,
  ): Promise<T | null>
}

/** Where dockerd is, from the words of DOCKER_HOST. Throws a StartupError for words that name no address. */
export function addressOf(host: string): { socketPath: string } | { host: string; port: number } {
  const [, path] = /^unix:\/\/(\/.+)$/.exec(host) ?? []
  if (path) return { socketPath: path }
  const [, name, port] = /^tcp:\/\/([^/:]+):(\d+)\/?$/.exec(host) ?? []
  if (name && port) return { host: name, port: Number(port) }
  throw new StartupError(
    'DOCKER_HOST must be unix:///path/of/a/socket or tcp://host:port: set it to where dockerd listens, or leave it out for unix:///var/run/docker.sock.',
  )
}

/** Options of a create as its body alone: else they would all be in the query too, which has no room for them. */
export function inBody<T extends object>(options: T): T {
  const { name, ...body } = options as T & { name?: string }
  return { _query: name === undefined ? {} : { name }, _body: body } as unknown as T
}

const statusOf = (error: unknown) => (error as { statusCode?: number }).statusCode ?? 0

/** Opens the way to dockerd; nothing is asked of it yet. Throws a StartupError for words that name no address. */
export function createDockerClient(host: string): DockerClient {
  // With all that the environment would set otherwise.
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
    const { promise: ending, reject: end } = Promise.withResolvers<never>()
    const onAbort = () => end(limit.reason)
    limit.addEventListener('abort', onAbort, { once: true })
    try {
      return await Promise.race([calls(docker, limit), ending])
    } catch (error) {
      signal.throwIfAborted()
      if (statuses.includes(statusOf(error))) return null
      if (/no space left on device|disk quota exceeded/i.test(String(error)))
        throw new SandboxCapacityError('the disk has no room left for this sandbox', { cause: error })
      if (error instanceof SandboxPathError || error instanceof SandboxAbsentError) throw error
      throw new SandboxUnavailableError(deadline.signal.aborted ? deadline.signal.reason : error)
    } finally {
      clearTimeout(timer)
      limit.removeEventListener('abort', onAbort)
    }
  }

  return {
    callUnless,
    call: async (signal, calls, options) =>
      (await callUnless([], signal, calls, options)) as Awaited<ReturnType<typeof calls>>,
  }
}
