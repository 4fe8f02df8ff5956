import { buffer } from 'node:stream/consumers'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'
import { downloadRoute } from './download.ts'
import { existingPath, isHidden, movablePath, newFilePath, newPath } from './paths.ts'
import {
  ByFolder,
  ByPath,
  FileContent,
  FileEntry,
  FileList,
  MakeFolder,
  MoveFile,
  maxContentBytes,
  maxEntries,
  RemoveFile,
  toEntry,
} from './schemas.ts'
import { uploadRoute } from './upload.ts'
import { inWorkspace, type WorkspaceDeps, withFiles } from './workspace.ts'

export type FileDeps = WorkspaceDeps

/** JSON writes a byte of text with six at the most; and a little for the rest. */
const contentBodyLimit = 6 * maxContentBytes + 64 * 1024
const callTimeoutMs = 30_000

const within = () => AbortSignal.timeout(callTimeoutMs)

function decode(bytes: Buffer): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch (cause) {
    throw new AppError('invalid', texts.fileIsNoText, { cause })
  }
}

/** The files of an instance's workspace, whether it runs or not. */
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
          'The entries of one directory of the workspace, sorted by name. Symbolic links are listed, but no call follows one.',
        querystring: ByFolder,
        response: { 200: FileList, ...failures(400, 404, 409, 502, 504) },
      },
    },
    ({ caller, params, query }) =>
      withFiles(deps, caller.organizationId, params.instance_id, async (files) => {
        const path = existingPath(query.path ?? '.')
        const { entries, isWhole } = await files.list(inWorkspace(path), { maxEntries: maxEntries }, within())
        const shown = entries.map((stat) => toEntry(path === '.' ? stat.name : `${path}/${stat.name}`, stat))
        return { path, entries: shown.filter((entry) => !isHidden(entry.path)), truncated: !isWhole }
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
        description: 'Its size, kind, permissions and when it was last changed. A symbolic link is described itself.',
        querystring: ByPath,
        response: { 200: FileEntry, ...failures(400, 404, 409, 502, 504) },
      },
    },
    ({ caller, params, query }) =>
      withFiles(deps, caller.organizationId, params.instance_id, async (files) => {
        const path = existingPath(query.path)
        const stat = await files.stat(inWorkspace(path), within())
        if (!stat) throw new AppError('not_found', texts.noSuchFile)
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
        description: 'The text of a file of 1 MiB at the most. For more, and for what is no text, use the download.',
        querystring: ByPath,
        response: { 200: FileContent, ...failures(400, 404, 409, 413, 502, 504) },
      },
    },
    ({ caller, params, query }) =>
      withFiles(deps, caller.organizationId, params.instance_id, async (files) => {
        const path = existingPath(query.path)
        const file = await files.read(inWorkspace(path), { maxBytes: maxContentBytes }, within())
        if (!file) throw new AppError('not_found', texts.noSuchFile)
        return { path, content: decode(await buffer(file.content())) }
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
          'Creates the file or replaces it at once: no reader sees a half of it. Missing directories are made. A file that is replaced keeps its permissions.',
        body: FileContent,
        response: { 204: Type.Null(), ...failures(400, 404, 409, 413, 502, 504, 507) },
      },
    },
    async ({ caller, params, body }, reply) => {
      const content = Buffer.from(body.content)
      await withFiles(deps, caller.organizationId, params.instance_id, (files) =>
        files.write(inWorkspace(newFilePath(body.path)), content, { maxBytes: maxContentBytes }, within()),
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
          'The destination is the new name, never a directory to move into. Missing directories are made. A destination that exists is refused; with `overwrite` a file takes the place of another file. Directories are never replaced or merged.',
        body: MoveFile,
        response: { 204: Type.Null(), ...failures(400, 404, 409, 502, 504, 507) },
      },
    },
    async ({ caller, params, body: { source, destination, overwrite = false } }, reply) => {
      await withFiles(deps, caller.organizationId, params.instance_id, (files) =>
        files.move(inWorkspace(movablePath(source)), inWorkspace(newPath(destination)), { overwrite }, within()),
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
        summary: 'Make a directory',
        description: 'Makes the directory and those above it. One that is there already is left as it is.',
        body: MakeFolder,
        response: { 204: Type.Null(), ...failures(400, 404, 409, 502, 504, 507) },
      },
    },
    async ({ caller, params, body }, reply) => {
      await withFiles(deps, caller.organizationId, params.instance_id, (files) =>
        files.mkdir(inWorkspace(newPath(body.path)), within()),
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
          'A directory that is not empty is deleted only with `recursive=true`. A symbolic link is deleted itself.',
        querystring: RemoveFile,
        response: { 204: Type.Null(), ...failures(400, 404, 409, 502, 504) },
      },
    },
    async ({ caller, params, query: { path, recursive = false } }, reply) => {
      await withFiles(deps, caller.organizationId, params.instance_id, async (files) => {
        const removed = await files.remove(inWorkspace(movablePath(path)), { recursive }, within())
        if (!removed) throw new AppError('not_found', texts.noSuchFile)
      })
      return reply.code(204).send(null)
    },
  )
}
