import { type GatewayPart, gatewayRequest } from '#api/responses/format/gateway-request.ts'
import { invalidField } from '#api/responses/format/invalid-field.ts'
import type { CheckedRequest } from '#api/responses/format/request.ts'
import type { CreateResponse } from '#api/responses/format/request-schema.ts'
import type { EchoedFields } from '#api/responses/format/response-schema.ts'
import { AppError } from '#errors/app-error.ts'
import type { RunningGateway } from '#instances/find.ts'
import { type RunRequest, resumedRunId } from '#openclaw/gateway/runs.ts'
import { toGatewayModel } from '#openclaw/models/model.ts'
import { errorTexts } from '#turns/error-texts.ts'
import type { Correction } from '#turns/output/ask.ts'

/** Images are the largest part. A row of the database should not be larger. */
const maxRequestMebibytes = 8

/** The data that another process needs to go on with a background turn. */
export interface BackgroundRequest {
  /** In seconds since 1970. */
  createdAt: number
  echo: EchoedFields
  /** The model as the caller named it. */
  model: string
  endUser: string | null
  /** Whether OpenClaw goes on with the turn after the end of its gateway. */
  isResumed: boolean
  /** Whether the stream has the events of the agent's tools. Rows of older versions are without it. */
  includesTools?: boolean
  run: Omit<RunRequest, 'sessionKey' | 'timeout'>
  /** Present once the first answer was not in the format: `run` is then the correction. */
  correction?: Correction
}

/** The request of a background turn whose first answer was not in the format. The agent has the images already. */
export function toCorrection({ run, ...request }: BackgroundRequest, correction: Correction): BackgroundRequest {
  const { attachments, ...rest } = run
  return { ...request, run: { ...rest, message: correction.message }, correction }
}

/** The id of the run of a background turn. A correction is a run of its own. */
export function runIdOf(responseId: string, { isResumed, correction }: BackgroundRequest): string {
  const id = correction ? `${responseId}:again` : responseId
  return isResumed ? resumedRunId(id) : id
}

/** A run of a gateway cannot be given these. */
const refusedFields = ['tools', 'tool_choice', 'max_output_tokens', 'temperature', 'top_p'] as const

/** Throws AppError invalid for a field that a background turn would drop. */
export function checkBackgroundFields(body: CreateResponse): void {
  for (const name of refusedFields) {
    if (body[name] == null || (name === 'tools' && body.tools?.length === 0)) continue
    throw invalidField(
      name,
      'a background turn cannot have it. Leave it out, or send background: false.',
      'unsupported_value',
    )
  }
  if (body.store === false) {
    throw invalidField('store', 'must be true for a background turn, which is read later.', 'unsupported_value')
  }
}

/**
 * The run of a background turn: one new message of the user, with the images that it contains. Throws AppError invalid
 * that names the field for anything else, and too_large.
 */
export function runOf(
  request: CheckedRequest,
  { provider }: Pick<RunningGateway, 'provider'>,
  offset: number,
): BackgroundRequest['run'] {
  const [item, ...more] = request.items.slice(offset)
  if (item?.type !== 'message' || item.role !== 'user' || more.length > 0) {
    throw invalidField('input', 'a background turn takes one new message of the user.', 'unsupported_value')
  }
  const { input, instructions } = gatewayRequest(request, offset)
  const [message] = input as [{ content: string | GatewayPart[] }]
  const parts =
    typeof message.content === 'string' ? [{ type: 'input_text' as const, text: message.content }] : message.content
  const attachments = parts.flatMap((part, index) => {
    if (part.type === 'input_text') return []
    const { source } = part
    if (part.type === 'input_image' && source.type === 'base64') {
      return [{ type: 'image' as const, mimeType: source.media_type, fileName: `image-${index}`, content: source.data }]
    }
    throw invalidField(
      `input.${offset}`,
      'a background turn takes images as data: URLs, and no files. Upload a file to the agent, or send background: false.',
      'unsupported_value',
    )
  })
  const text = parts.map((part) => (part.type === 'input_text' ? part.text : '')).join('')
  const gatewayModel = toGatewayModel(provider, request.echo.model)
  const slash = gatewayModel?.indexOf('/') ?? 0
  const run = {
    message: text,
    ...(instructions !== undefined && { extraSystemPrompt: instructions }),
    ...(gatewayModel !== null && { provider: gatewayModel.slice(0, slash), model: gatewayModel.slice(slash + 1) }),
    ...(attachments.length > 0 && { attachments }),
  }
  if (JSON.stringify(run).length > maxRequestMebibytes * 1024 * 1024) {
    throw new AppError('too_large', errorTexts.backgroundTooLarge(maxRequestMebibytes))
  }
  return run
}
