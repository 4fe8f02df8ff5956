import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { pack } from 'tar-stream'
import type { Progress } from '#sandbox/driver.ts'
import type { DockerClient } from './engine.ts'

/** What a release is installed from, in the build of its image. */
export interface ReleaseSource {
  /** The folder that the files are in, and they, relative to it. */
  root: string
  files: readonly string[]
  /** Run beside the files in the image; the folder that it is to install into is added as its last argument. */
  install: string
  /** The folder that holds the installed release's `node_modules`, for that folder. */
  folder(base: string): string
}

export interface BuildOptions {
  /** The network of the build's own containers, as of docker build's `--network`. */
  network: string
  /** A file of certificates that the build and the agents trust besides the usual, or null. */
  extraCaFile: string | null
}

/** What dockerd is asked to build a release's image with. */
export interface ImageBuild {
  name: string
  /** As of `POST /build`. */
  options: { t: string; networkmode: string; buildargs: Record<string, string>; rm: true; forcerm: true }
  /** A tar of all that goes into the image. */
  context(): Readable
}

export interface Images {
  /** The name of a release's image. It changes with anything that goes into it. */
  nameOf(release: string): Promise<string>
  exists(name: string, signal: AbortSignal): Promise<boolean>
  /**
   * Builds a release's image unless it is there. Callers at once share one build, which ends when all of them were
   * aborted. A crash or failure half-way leaves no image of that name, and what was built goes into the next attempt.
   * Throws with the build's last words, or after 15 minutes.
   */
  make(release: string, progress: Progress, signal: AbortSignal): Promise<void>
}

/** What names images have. */
export const imageName = /^chowder-openclaw:v\d+-[0-9a-f]{12}$/
/** How long a build may take. */
export const buildDeadlineMs = 15 * 60_000
const sandboxFolder = join(import.meta.dirname, '..')
/** The programs in the image, and all that they import, by their paths below src/sandbox. */
export const programFiles = [
  'errors.ts',
  'home/as-user.ts',
  'home/files.ts',
  'home/open-folder.ts',
  'docker/image/exec.sh',
  'docker/image/fence.sh',
  'docker/image/files-program.ts',
  'docker/image/forwarder.ts',
  'docker/image/frames.ts',
  'docker/image/idle.sh',
  'docker/image/strip-types.mjs',
  'docker/image/supervisor.ts',
]
/** Lets the files of a release import each other as they do in this project. */
const releaseManifest = '{ "type": "module", "imports": { "#*": "./src/*" } }\n'
const extraCaPath = '/etc/chowder/extra-ca.pem'
/** What the install says begins with it; all else is the builder's. */
const progressMark = 'chowder: '

interface Entry {
  name: string
  content: Buffer
}

async function contextOf(source: ReleaseSource, extraCaFile: string | null): Promise<Entry[]> {
  const at = async (name: string, path: string) => ({ name, content: await readFile(path) })
  return Promise.all([
    at('Dockerfile', join(import.meta.dirname, 'image/Dockerfile')),
    extraCaFile ? at('extra-ca.pem', extraCaFile) : { name: 'extra-ca.pem', content: Buffer.alloc(0) },
    { name: 'release/package.json', content: Buffer.from(releaseManifest) },
    ...source.files.map((file) => at(`release/${file}`, join(source.root, file))),
    ...programFiles.map((file) => at(`programs/${file}`, join(sandboxFolder, file))),
  ])
}

function tarOf(context: readonly Entry[]): Readable {
  const tar = pack()
  for (const { name, content } of context) tar.entry({ name, mode: name.endsWith('.sh') ? 0o755 : 0o644 }, content)
  tar.finalize()
  return tar as unknown as Readable
}

/** The build of a release's image. Its name changes with anything that goes into it. */
export async function imageBuild(
  release: string,
  source: ReleaseSource,
  { network, extraCaFile }: BuildOptions,
): Promise<ImageBuild> {
  const context = await contextOf(source, extraCaFile)
  const hash = createHash('sha256').update(source.install)
  for (const { name, content } of context) hash.update(`\0${name}\0${content.length}\0`).update(content)
  const name = `chowder-openclaw:${release}-${hash.digest('hex').slice(0, 12)}`
  const buildargs = { INSTALL: source.install, EXTRA_CA_FILE: extraCaFile ? extraCaPath : '' }
  return {
    name,
    options: { t: name, networkmode: network, buildargs, rm: true, forcerm: true },
    context: () => tarOf(context),
  }
}

/** The images of releases, on the host of dockerd. */
export function createImages(
  engine: DockerClient,
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
    (await engine.callUnless([404], signal, (docker) => docker.getImage(name).inspect())) !== null

  async function build(name: string, release: string, progress: Progress, signal: AbortSignal): Promise<void> {
    const { options, context } = await buildOf(release)
    progress(`building the image ${name}`)
    let words = ''
    await engine.call(
      signal,
      async (docker, abortSignal) => {
        const output = await docker.buildImage(context(), { ...options, abortSignal })
        for await (const event of linesOf(output)) {
          const said = JSON.parse(event) as { stream?: string; error?: string }
          const line = (said.stream ?? said.error ?? '').trimEnd()
          if (line.startsWith(progressMark)) progress(line.slice(progressMark.length))
          else words = `${words}${line}\n`.slice(-1000)
          if (said.error !== undefined) throw new Error(`the image ${name} could not be built: ${words}`)
        }
      },
      { deadlineMs: buildDeadlineMs },
    )
    if (!(await exists(name, signal))) throw new Error(`the image ${name} could not be built: ${words}`)
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
    const { promise: leaving, reject: leave } = Promise.withResolvers<never>()
    const onAbort = () => leave(signal.reason)
    signal.addEventListener('abort', onAbort, { once: true })
    try {
      await Promise.race([done, leaving])
    } finally {
      signal.removeEventListener('abort', onAbort)
      shared.callers -= 1
      if (shared.callers === 0) {
        building.delete(name)
        abort.abort(new Error('nobody waits for this build any more'))
      }
    }
  }

  return { nameOf, exists, make }
}

/** The lines of dockerd's progress; each is JSON of its own. */
async function* linesOf(output: NodeJS.ReadableStream): AsyncGenerator<string, void> {
  let text = ''
  output.setEncoding('utf8')
  for await (const chunk of output) {
    const lines = `${text}${chunk}`.split('\n')
    text = lines.pop() ?? ''
    for (const line of lines) if (line.trim() !== '') yield line
  }
  if (text.trim() !== '') yield text
}
