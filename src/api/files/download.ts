import { posix } from 'node:path'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import { create as contentDisposition } from 'content-disposition'
import mime from 'mime'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { clientLeft } from '#http/client-left.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import type { OpenFile } from '#sandbox/driver.ts'
import type { FileDeps } from './deps.ts'
import { existingPath } from './paths.ts'
import { PathQuery } from './schemas.ts'
import { inWorkspace, withFiles } from './workspace.ts'

export interface ByteRange {
  start: number
  /** The offset after the last byte. */
  end: number
}

/**
 * The range that a `Range` header selects in a file of `size` bytes; `unsatisfiable` when the file has no such bytes.
 * null for the whole file: without the header, and, as HTTP allows, for more than one range and for a malformed range.
 */
export function parseRange(header: string | undefined, size: number): ByteRange | 'unsatisfiable' | null {
  const [, first, last] = /^bytes=(\d*)-(\d*)$/.exec(header ?? '') ?? []
  if (first === undefined || last === undefined || (first === '' && last === '')) return null
  if (first === '') {
    const length = Number(last)
    return length === 0 || size === 0 ? 'unsatisfiable' : { start: Math.max(0, size - length), end: size }
  }
  const start = Number(first)
  if (last !== '' && Number(last) < start) return null
  if (start >= size) return 'unsatisfiable'
  return { start, end: last === '' ? size : Math.min(size, Number(last) + 1) }
}

/** A connection is closed after its client has read nothing for this long. */
const idleTimeoutMs = 60_000

const Bytes = Type.Unsafe<unknown>({ type: 'string', format: 'binary', description: 'The bytes.' })

/** Changes with the file, unless it is written twice within a millisecond with the same size. */
const entityTag = ({ size, modifiedAt }: OpenFile) => `"${size.toString(16)}-${modifiedAt.getTime().toString(16)}"`

/** Always quotes the name, because clients expect quotes even where HTTP needs none. */
const attachment = (path: string) =>
  contentDisposition(posix.basename(path)).replace(/^attachment; filename=([^";]+)/, 'attachment; filename="$1"')

/** Streams the bytes of a file. */
export const downloadRoute: FastifyPluginAsyncTypebox<FileDeps> = async (app, deps) => {
  app.get(
    '/v1/instances/:instance_id/files/download',
    {
      config: { access: 'files', inFlight: 'transfers' },
      schema: {
        operationId: 'downloadFile',
        summary: 'Download a file',
        description:
          'The bytes of a file of any size. The header `Range` selects one range of bytes, for instance to continue ' +
          'a download; `ETag` and `If-Range` tell whether the file has changed.',
        tags: ['files'],
        params: InstanceParams,
        querystring: PathQuery,
        response: {
          200: { description: 'The file.', content: { 'application/octet-stream': { schema: Bytes } } },
          206: { description: 'The range of the file.', content: { 'application/octet-stream': { schema: Bytes } } },
          304: { description: 'The file has the `ETag` that `If-None-Match` names.', type: 'null' },
          ...failures(400, 404, 409, 416, 502),
        },
      },
    },
    async (request, reply) => {
      const { caller, params, headers } = request
      const signal = clientLeft(reply)
      const path = existingPath(request.query.path)
      reply.raw.setTimeout(idleTimeoutMs, () => reply.raw.destroy())
      const file = await withFiles(deps, caller.organizationId, params.instance_id, (files) =>
        files.read(inWorkspace(path), { maxBytes: Number.POSITIVE_INFINITY }, signal),
      )
      if (!file) throw new AppError('file_not_found', texts.noSuchFile)

      const tag = entityTag(file)
      reply
        .header('etag', tag)
        .header('last-modified', file.modifiedAt.toUTCString())
        .header('accept-ranges', 'bytes')
        .header('cache-control', 'private, no-cache')
      if (headers['if-none-match'] === tag) {
        await file.close()
        return reply.code(304).send(null)
      }
      const isUnchanged = headers['if-range'] === undefined || headers['if-range'] === tag
      const range = isUnchanged ? parseRange(headers.range, file.size) : null
      if (range === 'unsatisfiable') {
        await file.close()
        reply.header('content-range', `bytes */${file.size}`)
        throw new AppError('no_such_range', texts.noSuchRange(file.size))
      }
      if (range) reply.code(206).header('content-range', `bytes ${range.start}-${range.end - 1}/${file.size}`)
      const { start, end } = range ?? { start: 0, end: file.size }
      reply
        .header('content-length', end - start)
        .header('content-disposition', attachment(path))
        .header('x-content-type-options', 'nosniff')
        .type(mime.getType(path) ?? 'application/octet-stream')
      // A HEAD request does not read the file.
      return reply.send(file.content(request.method === 'HEAD' ? { start, end: start } : { start, end }))
    },
  )
}
