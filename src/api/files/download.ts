import { posix } from 'node:path'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import { create as contentDisposition } from 'content-disposition'
import mime from 'mime'
import { clientLeft } from '#http/client-left.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'
import type { OpenFile } from '#sandbox/driver.ts'
import { existingPath } from './paths.ts'
import { rangeOf } from './range.ts'
import { ByPath } from './schemas.ts'
import { inWorkspace, type WorkspaceDeps, withFiles } from './workspace.ts'

/** How long, in ms, a reader may take nothing. */
const idleMs = 60_000

const Bytes = Type.Unsafe<unknown>({ type: 'string', format: 'binary' })

/** Changes whenever the file does: nobody writes a file twice with one size in the same millisecond. */
const entityTag = ({ size, modifiedAt }: OpenFile) => `"${size.toString(16)}-${modifiedAt.getTime().toString(16)}"`

/** With the name in quotes also where HTTP does without: clients look for them. */
const attachment = (path: string) =>
  contentDisposition(posix.basename(path)).replace(/^attachment; filename=([^";]+)/, 'attachment; filename="$1"')

/** A file's bytes, streamed. */
export const downloadRoute: FastifyPluginAsyncTypebox<WorkspaceDeps> = async (app, deps) => {
  app.get(
    '/v1/instances/:instance_id/files/download',
    {
      config: { access: 'files' },
      schema: {
        operationId: 'downloadFile',
        summary: 'Download a file',
        description:
          'The bytes of a file of any size. One range of bytes may be asked for with the header `Range`, for instance to go on with a download that broke off; `ETag` and `If-Range` tell whether the file is still the same.',
        tags: ['files'],
        params: InstanceParams,
        querystring: ByPath,
        response: {
          200: { description: 'The file.', content: { 'application/octet-stream': { schema: Bytes } } },
          206: { description: 'The range of it.', content: { 'application/octet-stream': { schema: Bytes } } },
          304: { description: 'The file is the one that `If-None-Match` names.', type: 'null' },
          ...failures(400, 404, 409, 416, 502),
        },
      },
    },
    async (request, reply) => {
      const { caller, params, headers } = request
      const left = clientLeft(reply)
      const path = existingPath(request.query.path)
      reply.raw.setTimeout(idleMs, () => reply.raw.destroy())
      const file = await withFiles(deps, caller.organizationId, params.instance_id, (files) =>
        files.read(inWorkspace(path), { maxBytes: Number.POSITIVE_INFINITY }, left),
      )
      if (!file) throw new AppError('not_found', texts.noSuchFile)

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
      const isSame = headers['if-range'] === undefined || headers['if-range'] === tag
      const range = isSame ? rangeOf(headers.range, file.size) : null
      if (range === 'none') {
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
      // A HEAD is answered without a look into the file.
      return reply.send(file.content(request.method === 'HEAD' ? { start, end: start } : { start, end }))
    },
  )
}
