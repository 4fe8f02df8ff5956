import { randomUUID } from 'node:crypto'
import type { ResponseStatus } from '#database/response-schema.ts'
import { isId, newId } from '#platform/ids.ts'
import type { EchoedFields, OutputItem, ResponseError, ResponseObject, Usage } from './response-schema.ts'

const withoutDashes = (uuid: string) => uuid.replaceAll('-', '')

/** The id of a response: the id of its row after `resp_`, without dashes. Ids sort by the time they were made. */
export const toResponseId = (uuid: string): string => `resp_${withoutDashes(uuid)}`
export const newResponseId = (): string => toResponseId(newId())

/** The id of the row of a response. */
export const toUuid = (id: string): string =>
  id.slice('resp_'.length).replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-')
export const isResponseId = (id: string): boolean => id.startsWith('resp_') && id.length === 37 && isId(toUuid(id))

export const newItemId = (kind: 'msg' | 'fc'): string => `${kind}_${withoutDashes(randomUUID())}`

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
