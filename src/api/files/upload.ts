import { randomUUID } from 'node:crypto'
import { Readable } from 'node:stream'
import multipart, { type Multipart } from '@fastify/multipart'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { FastifyRequest } from 'fastify'
import { clientLeft } from '#http/client-left.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'
import type { SandboxFiles } from '#sandbox/driver.ts'
import { newFilePath } from './paths.ts'
import { maxPathCharacters, UploadFile } from './schemas.ts'
import { inWorkspace, type WorkspaceDeps, withFiles } from './workspace.ts'

/** What a form may have beside the file's bytes. */
const formBytes = 64 * 1024
const removeTimeoutMs = 10_000
const limits = { fileSize: Number.POSITIVE_INFINITY, files: 1, fields: 1, fieldSize: 16 * 1024 }

const broken = (cause?: unknown) => new AppError('invalid', texts.brokenForm, { cause })

/** The parts of a form; what is no form, or ends too early, is the sender's fault. */
async function* partsOf(request: FastifyRequest): AsyncGenerator<Multipart> {
  try {
    yield* request.parts({ limits })
  } catch (cause) {
    throw broken(cause)
  }
}

/** A file's bytes, which end well only if its form ends with them: else what is refused would be written. */
async function* lastOf(file: Readable, parts: AsyncGenerator<Multipart>): AsyncGenerator<Buffer> {
  yield* file
  if (!(await parts.next()).done) throw broken()
}

/** A file into the workspace, streamed to its disk. */
export const uploadRoute: FastifyPluginAsyncTypebox<WorkspaceDeps> = async (app, deps) => {
  app.removeAllContentTypeParsers()
  await app.register(multipart, { throwFileSizeLimit: false })
  // Refused by the handler, in words that fit.
  app.addContentTypeParser('*', (_request, _body, done) => done(null))

  /** Writes the form's file to its path. If the path comes after it, the file waits for it in the agent's own tmp. */
  async function receive(request: FastifyRequest, files: SandboxFiles, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted() // of a request that has ended already, no part ever comes
    const waiting = `tmp/upload-${randomUUID()}`
    let path: string | undefined
    let written: string | undefined
    try {
      const parts = partsOf(request)
      for await (const part of parts) {
        if (part.type === 'field' && part.fieldname === 'path' && typeof part.value === 'string') {
          if (part.value.length > maxPathCharacters) throw new AppError('invalid', texts.pathTooLong)
          path = inWorkspace(newFilePath(part.value))
        } else if (part.type === 'file' && part.fieldname === 'file') {
          written = path ?? waiting
          const content =
            path === undefined ? part.file : Readable.from(lastOf(part.file, parts), { objectMode: false })
          await files.write(written, content, { maxBytes: deps.filesMaxBytes }, signal).catch((error) => {
            throw error === part.file.errored ? broken(error) : error
          })
        } else {
          throw broken()
        }
      }
      if (path === undefined || written === undefined) throw broken()
      if (written === waiting) await files.move(waiting, path, { overwrite: true }, signal)
    } catch (error) {
      if (written === waiting) {
        await files.remove(waiting, { recursive: false }, AbortSignal.timeout(removeTimeoutMs)).catch(() => {})
      }
      throw error
    }
  }

  app.post(
    '/v1/instances/:instance_id/files/upload',
    {
      config: { access: 'files', streamsBody: true, event: 'file.upload' },
      // The form is read part by part: there is no body to validate.
      validatorCompiler: () => () => true,
      schema: {
        operationId: 'uploadFile',
        summary: 'Upload a file',
        description:
          'Creates the file or replaces it once all of it has arrived: no reader sees a half of it. Missing directories are made. A sender who sends nothing for 60 seconds is cut off.',
        tags: ['files'],
        consumes: ['multipart/form-data'],
        params: InstanceParams,
        body: UploadFile,
        response: { 204: Type.Null(), ...failures(400, 404, 408, 409, 413, 415, 502, 507) },
      },
    },
    async (request, reply) => {
      const left = clientLeft(reply)
      if (!request.isMultipart()) throw new AppError('unsupported_media', texts.sendForm)
      if (Number(request.headers['content-length']) > deps.filesMaxBytes + formBytes) {
        throw new AppError('too_large', texts.fileTooLarge(deps.filesMaxBytes))
      }
      await withFiles(deps, request.caller.organizationId, request.params.instance_id, (files) =>
        receive(request, files, left),
      )
      return reply.code(204).send(null)
    },
  )
}
