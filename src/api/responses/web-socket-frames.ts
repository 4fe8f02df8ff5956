import type { FastifyError, FastifySchemaValidationError } from 'fastify'
import { AppError } from '#errors/app-error.ts'
import { type ErrorContext, errorObject } from '#http/error-body.ts'
import { failureOf } from '#http/errors.ts'
import { bodyBounds } from '#http/json-body.ts'
import { faultsMessage, paramOf, validationFaults } from '#http/validation-faults.ts'
import { isObject } from '#openclaw/json.ts'
import { parseJsonBytes } from '#platform/json/thread.ts'
import { errorTexts } from '#turns/error-texts.ts'
import { invalidField } from './format/invalid-field.ts'
import { CreateResponse } from './format/request-schema.ts'
import { compileTagged } from './validation.ts'

/** Reads a text frame as a request. Throws AppError invalid or unprocessable. */
export type ReadFrame = (bytes: Buffer) => Promise<CreateResponse>

export function createFrameReader(): ReadFrame {
  const validate = compileTagged(CreateResponse)
  return async (bytes) => {
    const frame = await parseJsonBytes(bytes, bodyBounds)
    if (!isObject(frame) || frame.type !== 'response.create')
      throw invalidField('type', errorTexts.onlyCreate, 'invalid_json')
    const { type: _type, stream: _stream, stream_options: _options, stream_id, generate, ...body } = frame
    if (stream_id != null) throw invalidField('stream_id', errorTexts.noStreamId, 'unsupported_value')
    if (generate != null && generate !== true) throw invalidField('generate', errorTexts.noWarmUp, 'unsupported_value')
    if (!validate(body)) {
      const faults = validationFaults({ validation: (validate.errors ?? []) as FastifySchemaValidationError[] }, true)
      throw new AppError('validation_failed', faultsMessage(faults), { param: paramOf(faults) })
    }
    return body as CreateResponse
  }
}

/** The frame for an error, in the form of the format's WebSocket mode. */
export function errorFrame(thrown: unknown, context: ErrorContext): string {
  const { status, ...failure } = failureOf(thrown as FastifyError, true)
  return JSON.stringify({ type: 'error', status, error: errorObject(failure, context) })
}
