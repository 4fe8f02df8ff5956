import { buffer } from 'node:stream/consumers'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import { type SandboxFiles, SandboxPathError } from '#sandbox/driver.ts'
import type { FileDeps } from './deps.ts'
import { downloadRoute } from './download.ts'
import { existingPath, isHidden, movablePath, newFilePath, newPath } from './paths.ts'
import {
  DeleteQuery,
  DirectoryQuery,
  FileContent,
  FileEntry,
  FileList,
  MakeDirectory,
  MoveFile,
  maxContentBytes,
  maxEntries,
  PathQuery,
  toEntry,
} from './schemas.ts'
import { uploadRoute } from './upload.ts'
import { inWorkspace, withFiles } from './workspace.ts'

/** JSON encodes a byte of text in six bytes or fewer. */
const contentBodyLimit = 6 * maxContentBytes + 64 * 1024
const callTimeoutMs = 30_000

const deadline = () => AbortSignal.timeout(callTimeoutMs)

/** The first file creates the workspace. Until then it is empty. */
function noneIfMissing(error: unknown): Awaited<ReturnType<SandboxFiles['list']>> {
  if (error instanceof SandboxPathError && error.fault === 'missing') return { entries: [], isWhole: true }
  throw error
}

function decodeText(bytes: Buffer): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch (cause) {
    throw new AppError('file_not_text', texts.fileIsNoText, { cause })
  }
}

/** The files in the workspace of an instance, whether it runs or not. */
export const fileRoutes: FastifyPluginAsyncTypebox<FileDeps> = async (app, deps) => {
  const config = { access: 'files' } as const
  const common = { tags: ['files'], params: InstanceParams }

  await app.register(uploadRoute, deps)
  await app.register(downloadRoute, deps)

  app.get(
    '/v1/instances/:instance_id/files',
    {
      config,
      schema: {
        ...common,
        operationId: 'listFiles',
        summary: 'List a directory',
        description:
          'The entries of one directory of the workspace, sorted by name. Symbolic links are listed, but no call ' +
          'follows them. A file whose name is not UTF-8 is not listed.',
        querystring: DirectoryQuery,
        response: { 200: FileList, ...failures(400, 404, 409, 502, 504) },
      },
    },
    ({ caller, params, query }) =>
      withFiles(deps, caller.organizationId, params.instance_id, async (files) => {
        const path = existingPath(query.path ?? '.')
        const listed = files.list(inWorkspace(path), { maxEntries }, deadline())
        const { entries, isWhole } = await (path === '.' ? listed.catch(noneIfMissing) : listed)
        const all = entries.map((stat) => toEntry(path === '.' ? stat.name : `${path}/${stat.name}`, stat))
        return { path, entries: all.filter((entry) => !isHidden(entry.path)), truncated: !isWhole }
      }),
  )

  app.get(
    '/v1/instances/:instance_id/files/stat',
    {
      config,
      schema: {
        ...common,
        operationId: 'statFile',
        summary: 'Describe a file or directory',
        description: 'The size, kind, permissions and time of the last change. For a symbolic link, those of the link.',
        querystring: PathQuery,
        response: { 200: FileEntry, ...failures(400, 404, 409, 502, 504) },
      },
    },
    ({ caller, params, query }) =>
      withFiles(deps, caller.organizationId, params.instance_id, async (files) => {
        const path = existingPath(query.path)
        const stat = await files.stat(inWorkspace(path), deadline())
        if (!stat) throw new AppError('file_not_found', texts.noSuchFile)
        return toEntry(path, stat)
      }),
  )

  app.get(
    '/v1/instances/:instance_id/files/content',
    {
      config,
      schema: {
        ...common,
        operationId: 'readFile',
        summary: 'Read a text file',
        description:
          'The text of a file of up to 1 MiB. Use the download for larger files, and for files that are not text.',
        querystring: PathQuery,
        response: { 200: FileContent, ...failures(400, 404, 409, 413, 502, 504) },
      },
    },
    ({ caller, params, query }) =>
      withFiles(deps, caller.organizationId, params.instance_id, async (files) => {
        const path = existingPath(query.path)
        const file = await files.read(inWorkspace(path), { maxBytes: maxContentBytes }, deadline())
        if (!file) throw new AppError('file_not_found', texts.noSuchFile)
        return { path, content: decodeText(await buffer(file.content())) }
      }),
  )

  app.put(
    '/v1/instances/:instance_id/files/content',
    {
      config: { ...config, event: 'file.write' },
      bodyLimit: contentBodyLimit,
      schema: {
        ...common,
        operationId: 'writeFile',
        summary: 'Write a text file',
        description:
          'Creates or replaces the file as a whole, so that no reader sees a part of it. Missing directories are ' +
          'created. A replaced file keeps its permissions.',
        body: FileContent,
        response: { 204: Type.Null(), ...failures(400, 404, 409, 413, 502, 504, 507) },
      },
    },
    async ({ caller, params, body }, reply) => {
      const content = Buffer.from(body.content)
      await withFiles(deps, caller.organizationId, params.instance_id, (files) =>
        files.write(inWorkspace(newFilePath(body.path)), content, { maxBytes: maxContentBytes }, deadline()),
      )
      return reply.code(204).send(null)
    },
  )

  app.post(
    '/v1/instances/:instance_id/files/move',
    {
      config: { ...config, event: 'file.move' },
      schema: {
        ...common,
        operationId: 'moveFile',
        summary: 'Move or rename a file or directory',
        description:
          'The destination is the new name, never a directory to move into. Missing directories are created. A ' +
          'destination that exists is refused; with `overwrite` a file replaces another file. Directories are never ' +
          'replaced or merged.',
        body: MoveFile,
        response: { 204: Type.Null(), ...failures(400, 404, 409, 502, 504, 507) },
      },
    },
    async ({ caller, params, body: { source, destination, overwrite = false } }, reply) => {
      await withFiles(deps, caller.organizationId, params.instance_id, (files) =>
        files.move(
          inWorkspace(movablePath(source)),
          inWorkspace(newPath(destination, 'destination')),
          { overwrite },
          deadline(),
        ),
      )
      return reply.code(204).send(null)
    },
  )

  app.post(
    '/v1/instances/:instance_id/files/mkdir',
    {
      config: { ...config, event: 'file.mkdir' },
      schema: {
        ...common,
        operationId: 'makeDirectory',
        summary: 'Create a directory',
        description: 'Creates the directory and its missing parents. A directory that exists stays as it is.',
        body: MakeDirectory,
        response: { 204: Type.Null(), ...failures(400, 404, 409, 502, 504, 507) },
      },
    },
    async ({ caller, params, body }, reply) => {
      await withFiles(deps, caller.organizationId, params.instance_id, (files) =>
        files.mkdir(inWorkspace(newPath(body.path)), deadline()),
      )
      return reply.code(204).send(null)
    },
  )

  app.delete(
    '/v1/instances/:instance_id/files',
    {
      config: { ...config, event: 'file.delete' },
      schema: {
        ...common,
        operationId: 'deleteFile',
        summary: 'Delete a file or directory',
        description:
          'A directory that is not empty is deleted only with `recursive=true`. Of a symbolic link, only the link ' +
          'is deleted.',
        querystring: DeleteQuery,
        response: { 204: Type.Null(), ...failures(400, 404, 409, 502, 504) },
      },
    },
    async ({ caller, params, query: { path, recursive = false } }, reply) => {
      await withFiles(deps, caller.organizationId, params.instance_id, async (files) => {
        const removed = await files.remove(inWorkspace(movablePath(path)), { recursive }, deadline())
        if (!removed) throw new AppError('file_not_found', texts.noSuchFile)
      })
      return reply.code(204).send(null)
    },
  )
}
