import pTimeout from 'p-timeout'
import { InstallError } from '#errors/install-error.ts'
import { type BuildOptions, imageBuild, type ReleaseSource } from '#sandbox/container/image.ts'
import type { Progress } from '#sandbox/driver.ts'
import type { DockerClient } from './docker-client.ts'

export interface Images {
  /** The name of a release's image. It changes with any of its content. */
  nameOf(release: string): Promise<string>
  exists(name: string, signal: AbortSignal): Promise<boolean>
  /**
   * Builds the image of a release unless it exists. Concurrent callers share one build, which is aborted with the last
   * of them. A crash or failure half-way leaves no image with that name; the next attempt reuses the finished layers.
   * Throws InstallError when the build fails, and SandboxUnavailableError after 15 minutes.
   */
  make(release: string, progress: Progress, signal: AbortSignal): Promise<void>
}

export const buildDeadlineMs = 15 * 60_000
/** The prefix of the install's progress lines in the output of the builder. */
const progressMark = 'chowder: '
/** The prefix of the line with the reason of a failed install. */
const failureMark = 'chowder-failure: '
/** Characters of the builder's output in an error. */
const maxOutput = 1000

/** The error of a failed build: the reason given by the install, or one derived from the output of the builder. */
const failed = (output: string, failure = '') =>
  new InstallError('The image of OpenClaw could not be built', output, failure.replace(/\.$/, '') || undefined)

/** The images of releases, on the host of dockerd. */
export function createImages(
  client: DockerClient,
  sourceOf: (release: string) => ReleaseSource,
  buildOptions: BuildOptions,
): Images {
  const building = new Map<string, { done: Promise<void>; callers: number; abort: AbortController }>()
  const names = new Map<string, Promise<string>>()

  const buildOf = (release: string) => imageBuild(release, sourceOf(release), buildOptions)

  function nameOf(release: string): Promise<string> {
    const name = names.get(release) ?? buildOf(release).then((build) => build.name)
    names.set(release, name)
    return name
  }

  const exists = async (name: string, signal: AbortSignal) =>
    (await client.callUnless([404], signal, (docker) => docker.getImage(name).inspect())) !== null

  async function build(name: string, release: string, progress: Progress, signal: AbortSignal): Promise<void> {
    const { options, context } = await buildOf(release)
    progress(`building the image ${name}`)
    let output = ''
    let failure: string | undefined
    await client.call(
      signal,
      async (docker, abortSignal) => {
        const events = await docker.buildImage(context(), { ...options, abortSignal })
        for await (const event of linesOf(events)) {
          const { stream, error } = JSON.parse(event) as { stream?: string; error?: string }
          const line = (stream ?? error ?? '').trimEnd()
          if (line.startsWith(progressMark)) progress(line.slice(progressMark.length), true)
          else if (line.startsWith(failureMark)) failure = line.slice(failureMark.length)
          else output = `${output}${line}\n`.slice(-maxOutput)
          if (error !== undefined) throw failed(output, failure)
        }
      },
      { deadlineMs: buildDeadlineMs },
    )
    if (!(await exists(name, signal))) throw failed(output, failure)
    progress(`the image ${name} is built`)
  }

  async function make(release: string, progress: Progress, signal: AbortSignal): Promise<void> {
    const name = await nameOf(release)
    if (await exists(name, signal)) return
    let shared = building.get(name)
    if (!shared) {
      const abort = new AbortController()
      const done = build(name, release, progress, abort.signal)
      shared = { done, callers: 0, abort }
      building.set(name, shared)
    }
    const { done, abort } = shared
    shared.callers += 1
    try {
      await pTimeout(done, { milliseconds: Number.POSITIVE_INFINITY, signal })
    } finally {
      shared.callers -= 1
      if (shared.callers === 0) {
        building.delete(name)
        abort.abort(new Error('no caller waits for this build any more'))
      }
    }
  }

  return { nameOf, exists, make }
}

/** The lines of dockerd's progress, each of which is JSON. */
async function* linesOf(events: NodeJS.ReadableStream): AsyncGenerator<string, void> {
  let text = ''
  events.setEncoding('utf8')
  for await (const chunk of events) {
    const lines = `${text}${chunk}`.split('\n')
    text = lines.pop() ?? ''
    for (const line of lines) if (line.trim() !== '') yield line
  }
  if (text.trim() !== '') yield text
}
