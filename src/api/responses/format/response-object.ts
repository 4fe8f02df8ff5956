import type { ResponseStatus } from '#database/response-schema.ts'
import type { EchoedFields, OutputItem, ResponseError, ResponseObject, Usage } from './response-schema.ts'

export const nowInSeconds = (): number => Math.floor(Date.now() / 1000)

/** The state of a response that its turn decides. */
export interface Outcome {
  status: ResponseStatus | 'queued'
  usage: Usage | null
  error: ResponseError | null
}

export const inProgress: Outcome = { status: 'in_progress', usage: null, error: null }
/** The turn waits for the earlier turns of its session. */
export const queued: Outcome = { status: 'queued', usage: null, error: null }
export const cancelled: Outcome = { status: 'cancelled', usage: null, error: null }
export const failedWith = (error: ResponseError): Outcome => ({ status: 'failed', usage: null, error })

const reasons = { incomplete: { reason: 'max_output_tokens' }, cancelled: { reason: 'cancelled' } } as const

/** A response from the moment its request was accepted. */
export interface ResponseDraft {
  id: string
  createdAt: number
  echo: EchoedFields
}

/** The response as clients get it. It is complete in every state. */
export const responseObject = (
  { id, createdAt, echo }: ResponseDraft,
  { status, usage, error }: Outcome,
  output: readonly OutputItem[],
): ResponseObject => ({
  id,
  object: 'response',
  created_at: createdAt,
  completed_at: status === 'completed' ? nowInSeconds() : null,
  status,
  incomplete_details: status === 'incomplete' || status === 'cancelled' ? reasons[status] : null,
  error,
  output: [...output],
  usage,
  ...echo,
})
