import { randomUUID } from 'node:crypto'
import { Readable } from 'node:stream'
import multipart, { type Multipart } from '@fastify/multipart'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { FastifyRequest } from 'fastify'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { clientLeft } from '#http/client-left.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import type { SandboxFiles } from '#sandbox/driver.ts'
import type { FileDeps } from './deps.ts'
import { newFilePath } from './paths.ts'
import { maxPathCharacters, UploadFile } from './schemas.ts'
import { inWorkspace, withFiles } from './workspace.ts'

/** The maximum size of a form without its file. */
const maxFormOverheadBytes = 64 * 1024
const removeTimeoutMs = 10_000
const limits = { fileSize: Number.POSITIVE_INFINITY, files: 1, fields: 1, fieldSize: 16 * 1024 }

const brokenForm = (cause?: unknown) => new AppError('invalid_value', texts.brokenForm, { cause })

async function* partsOf(request: FastifyRequest): AsyncGenerator<Multipart> {
  try {
    yield* request.parts({ limits })
  } catch (cause) {
    throw brokenForm(cause)
  }
}

/** The bytes of a form's last part. Fails if another part follows, so that a refused form writes no file. */
async function* lastPart(file: Readable, parts: AsyncGenerator<Multipart>): AsyncGenerator<Buffer> {
  yield* file
  if (!(await parts.next()).done) throw brokenForm()
}

/**
 * Writes the file of a form to its path. If the form holds the path after the file, the file is written to the agent's
 * temporary folder first. A crash between the two leaves it there.
 */
async function receiveFile(
  request: FastifyRequest,
  files: SandboxFiles,
  maxBytes: number,
  signal: AbortSignal,
): Promise<void> {
  signal.throwIfAborted() // a request that has ended delivers no part
  const temporary = `tmp/upload-${randomUUID()}`
  let path: string | undefined
  let written: string | undefined
  try {
    const parts = partsOf(request)
    for await (const part of parts) {
      if (part.type === 'field' && part.fieldname === 'path' && typeof part.value === 'string') {
        if (part.value.length > maxPathCharacters) throw new AppError('invalid_path', texts.pathTooLong)
        path = inWorkspace(newFilePath(part.value))
      } else if (part.type === 'file' && part.fieldname === 'file') {
        written = path ?? temporary
        const content =
          path === undefined ? part.file : Readable.from(lastPart(part.file, parts), { objectMode: false })
        await files.write(written, content, { maxBytes }, signal).catch((error) => {
          throw error === part.file.errored ? brokenForm(error) : error
        })
      } else {
        throw brokenForm()
      }
    }
    if (path === undefined || written === undefined) throw brokenForm()
    if (written === temporary) await files.move(temporary, path, { overwrite: true }, signal)
  } catch (error) {
    if (written === temporary) {
      await files.remove(temporary, { recursive: false }, AbortSignal.timeout(removeTimeoutMs)).catch(() => {})
    }
    throw error
  }
}

/** Streams an uploaded file into the workspace. */
export const uploadRoute: FastifyPluginAsyncTypebox<FileDeps> = async (app, deps) => {
  app.removeAllContentTypeParsers()
  await app.register(multipart, { throwFileSizeLimit: false })
  // Other content types reach the handler, which refuses them with its own text.
  app.addContentTypeParser('*', (_request, _body, done) => done(null))

  app.post(
    '/v1/instances/:instance_id/files/upload',
    {
      config: { access: 'files', inFlight: 'transfers', streamsBody: true, event: 'file.upload', idempotency: 'none' },
      // The handler reads the form part by part, so there is no body to validate.
      validatorCompiler: () => () => true,
      schema: {
        operationId: 'uploadFile',
        summary: 'Upload a file',
        description:
          'Creates or replaces the file once all of it has arrived, so that no reader sees a part of it. Missing ' +
          'directories are created. An upload may take two hours; one that stalls for 60 seconds is a 408.',
        tags: ['files'],
        consumes: ['multipart/form-data'],
        params: InstanceParams,
        body: UploadFile,
        response: { 204: Type.Null(), ...failures(400, 404, 408, 409, 413, 415, 502, 507) },
      },
    },
    async (request, reply) => {
      const signal = clientLeft(reply)
      if (!request.isMultipart()) throw new AppError('unsupported_media', texts.sendForm)
      if (Number(request.headers['content-length']) > deps.filesMaxBytes + maxFormOverheadBytes) {
        throw new AppError('too_large', texts.fileTooLarge(deps.filesMaxBytes))
      }
      await withFiles(deps, request.caller.organizationId, request.params.instance_id, (files) =>
        receiveFile(request, files, deps.filesMaxBytes, signal),
      )
      return reply.code(204).send(null)
    },
  )
}
