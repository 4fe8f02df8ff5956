import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { pack } from 'tar-stream'

/** The files and the command that install a release in the build of its image. */
export interface ReleaseSource {
  root: string
  /** Relative to `root`. */
  files: readonly string[]
  /** A command that is run beside the files in the image. Its last argument is the folder to install into. */
  install: string
  /** The folder of the release, with its `node_modules`, below the folder of the install. */
  folder(base: string): string
}

export interface BuildOptions {
  /** The network of the build's own containers, as in docker build's `--network`. */
  network: string
  /** A file of additional certificates for the build and the agents, or null. */
  extraCaFile: string | null
  /** The image of Node.js to build on. */
  nodeImage: string
}

/** The request that makes dockerd build the image of a release. */
export interface ImageBuild {
  name: string
  /** The parameters of `POST /build`. */
  options: { t: string; networkmode: string; buildargs: Record<string, string>; rm: true; forcerm: true }
  /** A tar of all files for the image. */
  context(): Readable
}

/** Matches the names of images. */
export const imageName = /^chowder-openclaw:v\d+-[0-9a-f]{12}$/
const sandboxFolder = join(import.meta.dirname, '..')
/** The programs in the image with all their imports, by their paths below src/sandbox. */
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
  'log-file.ts',
  'log-lines.ts',
  'room/room-server.py',
  'room/room-ssh.py',
  'socket-filter.pl',
  'container/image/exec.sh',
  'container/image/files-program.ts',
  'container/image/firewall.sh',
  'container/image/forwarder.ts',
  'container/image/frames.ts',
  'container/image/idle.sh',
  'container/image/strip-types.mjs',
  'container/image/supervisor.ts',
  'container/image/user.sh',
]
/** Makes the imports between the files of a release work as in this project. */
const releaseManifest = '{ "type": "module", "imports": { "#*": "./src/*" } }\n'
const extraCaPath = '/etc/chowder/extra-ca.pem'
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
    ...programFiles.map((file) => entry(`programs/${file}`, join(sandboxFolder, file))),
  ])
}

function tarOf(context: readonly Entry[]): Readable {
  const tar = pack()
  for (const { name, content } of context) tar.entry({ name, mode: /\.(sh|py)$/.test(name) ? 0o755 : 0o644 }, content)
  tar.finalize()
  return tar as unknown as Readable
}

/** Describes the build of the image of a release. The image's name changes with any of its content. */
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
