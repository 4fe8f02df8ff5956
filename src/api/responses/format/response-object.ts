import { randomUUID } from 'node:crypto'
import type { ResponseStatus } from '#database/schema.ts'
import { newId } from '#platform/ids.ts'
import type { EchoedFields, OutputItem, ResponseError, ResponseObject, Usage } from './response-schema.ts'

const withoutDashes = (id: string) => id.replaceAll('-', '')

/** Sorts by the time it was made, as the id of the row that it is. */
export const newResponseId = (): string => `resp_${withoutDashes(newId())}`
export const newItemId = (kind: 'msg' | 'fc'): string => `${kind}_${withoutDashes(randomUUID())}`

export const nowInSeconds = (): number => Math.floor(Date.now() / 1000)

/** How a response ended. */
export interface Outcome {
  status: ResponseStatus
  usage: Usage | null
  error: ResponseError | null
}

export const inProgress: Outcome = { status: 'in_progress', usage: null, error: null }
export const cancelled: Outcome = { status: 'cancelled', usage: null, error: null }

const reasons = { incomplete: { reason: 'max_output_tokens' }, cancelled: { reason: 'cancelled' } } as const

/** The response as clients get it, whole at every moment of its life. */
export const responseObject = (
  { id, createdAt, echo }: { id: string; createdAt: number; echo: EchoedFields },
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

export const outputText = (text: string) => ({ type: 'output_text' as const, text, annotations: [], logprobs: [] })
