import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import pTimeout from 'p-timeout'
import { pack } from 'tar-stream'
import { InstallError } from '#platform/install-error.ts'
import type { Progress } from '#sandbox/driver.ts'
import type { DockerClient } from './docker-client.ts'
import { firewallProgram } from './profile.ts'

/** The files and the command that install a release in the build of its image. */
export interface ReleaseSource {
  root: string
  /** Relative to `root`. */
  files: readonly string[]
  /** A command that is run beside the files in the image. The folder to install into is added as its last argument. */
  install: string
  /** The folder of the release, with its `node_modules`, below the folder of the install. */
  folder(base: string): string
}

export interface BuildOptions {
  /** The network of the build's own containers, as of docker build's `--network`. */
  network: string
  /** A file of certificates that the build and the agents trust besides the usual ones, or null. */
  extraCaFile: string | null
  /** The image of Node.js to build on. */
  nodeImage: string
}

/** The request that makes dockerd build the image of a release. */
export interface ImageBuild {
  name: string
  /** The parameters of `POST /build`. */
  options: { t: string; networkmode: string; buildargs: Record<string, string>; rm: true; forcerm: true }
  /** A tar of everything that goes into the image. */
  context(): Readable
}

export interface Images {
  /** The name of a release's image. It changes with anything that goes into it. */
  nameOf(release: string): Promise<string>
  exists(name: string, signal: AbortSignal): Promise<boolean>
  /**
   * Builds the image of a release unless it exists. Concurrent callers share one build, which is aborted with the last
   * of them. A crash or failure half-way leaves no image of that name; the next attempt reuses the finished layers.
   * Throws InstallError when the build fails, and SandboxUnavailableError after 15 minutes.
   */
  make(release: string, progress: Progress, signal: AbortSignal): Promise<void>
}

/** Matches the names of images. */
export const imageName = /^chowder-openclaw:v\d+-[0-9a-f]{12}$/
export const buildDeadlineMs = 15 * 60_000
const sandboxFolder = join(import.meta.dirname, '..')
/** The programs in the image, with all that they import, by their paths below src/sandbox. */
export const programFiles = [
  'command-as-user.ts',
  'disk-use.sh',
  'errors.ts',
  'home/files.ts',
  'home/open-folder.ts',
  'home/read-file.ts',
  'kubernetes/image/init.sh',
  'kubernetes/image/look.sh',
  'kubernetes/image/room.sh',
  'kubernetes/image/start.sh',
  'local/log-file.ts',
  'log-lines.ts',
  'room/no-network.pl',
  'room/room-server.py',
  'room/room-ssh.py',
  'docker/image/exec.sh',
  'docker/image/files-program.ts',
  'docker/image/firewall.sh',
  'docker/image/forwarder.ts',
  'docker/image/frames.ts',
  'docker/image/idle.sh',
  'docker/image/strip-types.mjs',
  'docker/image/supervisor.ts',
]
/** Lets the files of a release import each other as they do in this project. */
const releaseManifest = '{ "type": "module", "imports": { "#*": "./src/*" } }\n'
const extraCaPath = '/etc/chowder/extra-ca.pem'
/** The first characters of a line of progress of the install, among the output of the builder. */
const progressMark = 'chowder: '
/** The same for the sentence on why the install failed. */
const failureMark = 'chowder-failure: '
/** Characters of the builder's output in an error. */
const maxOutput = 1000

/** Why the build of an image failed: as the install says in it, or by the class of the builder's own output. */
const failed = (output: string, failure = '') =>
  new InstallError('The image of OpenClaw could not be built', output, failure.replace(/\.$/, '') || undefined)

const nameInImage = (file: string) => file.replace(/firewall\.sh$/, firewallProgram)

interface Entry {
  name: string
  content: Buffer
}

async function contextOf(source: ReleaseSource, extraCaFile: string | null): Promise<Entry[]> {
  const entry = async (name: string, path: string) => ({ name, content: await readFile(path) })
  return Promise.all([
    entry('Dockerfile', join(import.meta.dirname, 'image/Dockerfile')),
    extraCaFile ? entry('extra-ca.pem', extraCaFile) : { name: 'extra-ca.pem', content: Buffer.alloc(0) },
    { name: 'release/package.json', content: Buffer.from(releaseManifest) },
    ...source.files.map((file) => entry(`release/${file}`, join(source.root, file))),
    ...programFiles.map((file) => entry(`programs/${nameInImage(file)}`, join(sandboxFolder, file))),
  ])
}

function tarOf(context: readonly Entry[]): Readable {
  const tar = pack()
  for (const { name, content } of context) tar.entry({ name, mode: /\.(sh|py)$/.test(name) ? 0o755 : 0o644 }, content)
  tar.finalize()
  return tar as unknown as Readable
}

/** Describes the build of the image of a release. The image's name changes with everything that goes into it. */
export async function imageBuild(
  release: string,
  source: ReleaseSource,
  { network, extraCaFile, nodeImage }: BuildOptions,
): Promise<ImageBuild> {
  const context = await contextOf(source, extraCaFile)
  const hash = createHash('sha256').update(`${nodeImage}\0${source.install}`)
  for (const { name, content } of context) hash.update(`\0${name}\0${content.length}\0`).update(content)
  const name = `chowder-openclaw:${release}-${hash.digest('hex').slice(0, 12)}`
  const buildargs = {
    NODE_IMAGE: nodeImage,
    INSTALL: source.install,
    EXTRA_CA_FILE: extraCaFile ? extraCaPath : '',
  }
  return {
    name,
    options: { t: name, networkmode: network, buildargs, rm: true, forcerm: true },
    context: () => tarOf(context),
  }
}

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
