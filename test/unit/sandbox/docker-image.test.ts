import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { releaseImage } from '#openclaw/release/release-image.ts'
import { imageBuild, programFiles } from '#sandbox/container/image.ts'
import { createDockerClient } from '#sandbox/docker/docker-client.ts'
import { createImages } from '#sandbox/docker/images.ts'
import { loadConfig } from '#settings/config.ts'

const root = join(import.meta.dirname, '../../..')
const statement = /^(?:import|export) (?!type )[^']*'(?:#([^']+)|(\.[^']+))'$/gm

const readBeside = /readFileSync\(join\(import\.meta\.dirname, '([^']+)'\)/g

/** The files of this project that a file imports or reads when it runs, as paths below the root. */
async function neededBy(file: string): Promise<string[]> {
  const source = await readFile(join(root, file), 'utf8')
  const imported = [...source.matchAll(statement)].map(([, ours, beside = '']) =>
    ours ? `src/${ours}` : join(file, '..', beside),
  )
  return [...imported, ...[...source.matchAll(readBeside)].map(([, name = '']) => join(file, '..', name))]
}

test.each([
  ['the programs of an image', programFiles.map((name) => `src/sandbox/${name}`)],
  ['the install of a release in an image', releaseImage('v1').files.filter((name) => name.startsWith('src/'))],
])('%s: no file needs one that the image does not have', async (_what, files) => {
  for (const file of files) for (const needed of await neededBy(file)) expect(files).toContain(needed)
})

test('no program of an image is empty', async () => {
  for (const name of programFiles)
    expect([name, (await readFile(join(root, 'src/sandbox', name), 'utf8')).trim()]).not.toEqual([name, ''])
})

test.each([
  [
    'chowder-failure: OpenClaw 1 could not be installed: the package registry cannot be reached.',
    'OpenClaw 1 could not be installed: the package registry cannot be reached.',
  ],
  ['Err:1 http://deb.debian.org Temporary failure: EAI_AGAIN', 'the package registry cannot be reached.'],
  ['write /layer: no space left on device', 'the disk is full.'],
])('a build that ends with %j says why', async (line, why) => {
  const events = [
    { stream: 'Step 1/2 : RUN install\n' },
    { stream: 'chowder: installing OpenClaw 1: 1 of 3 packages\n' },
    { stream: `${line}\n` },
    { error: 'The command returned a non-zero code: 1' },
  ]
  const dockerd = createServer((request, answer) => {
    if (request.method === 'GET') answer.writeHead(404).end('{"message":"no such image"}')
    else request.resume().on('end', () => answer.end(events.map((event) => JSON.stringify(event)).join('\n')))
  })
  dockerd.listen(0, '127.0.0.1')
  await once(dockerd, 'listening')
  const client = createDockerClient({
    host: `tcp://127.0.0.1:${(dockerd.address() as AddressInfo).port}`,
    tls: null,
  })
  const images = createImages(client, releaseImage, {
    network: 'default',
    extraCaFile: null,
    nodeImage: 'node:24-slim',
  })
  const lines: string[] = []
  try {
    const failure = images.make('v1', (text) => lines.push(text), AbortSignal.timeout(20_000))
    await expect(failure).rejects.toMatchObject({
      name: 'InstallError',
      message: `The image of OpenClaw could not be built: ${why}`,
      output: expect.stringContaining('Step 1/2'),
    })
    expect(lines.at(-1)).toBe('installing OpenClaw 1: 1 of 3 packages')
  } finally {
    dockerd.closeAllConnections()
    dockerd.close()
  }
})

test('S29: images are built on the image of Node.js that the setting names, which may have a digest', async () => {
  const digest = `node:24-slim@sha256:${'a'.repeat(64)}`
  const build = (nodeImage: string) =>
    imageBuild('v1', releaseImage('v1'), { network: 'default', extraCaFile: null, nodeImage })
  const [usual, pinned] = [await build('node:24-slim'), await build(digest)]
  expect(pinned.options.buildargs.NODE_IMAGE).toBe(digest)
  expect(pinned.name).not.toBe(usual.name)
  for (const file of ['Dockerfile', 'src/sandbox/container/image/Dockerfile']) {
    const text = await readFile(join(root, file), 'utf8')
    expect(text).toContain(`ARG NODE_IMAGE=${loadConfig({}).DOCKER_NODE_IMAGE}\nFROM $NODE_IMAGE`)
    const bases = [...text.matchAll(/^FROM (\S+)/gm)].map(([, base]) => base)
    expect(new Set(bases)).toEqual(new Set(['$NODE_IMAGE']))
  }
})
