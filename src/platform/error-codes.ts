import { agentCodes } from '#platform/error-codes/agents.ts'
import { type ErrorKind, kinds } from '#platform/error-codes/kinds.ts'
import { requestCodes } from '#platform/error-codes/requests.ts'

export type { ErrorKind } from '#platform/error-codes/kinds.ts'

/**
 * Every code that an error of the API can have. The list is published in the OpenAPI document and at `/docs/errors`.
 * Programs branch on a code by what to do next: two failures with the same remedy share one. To add a code, write it into
 * a file of `error-codes/` under its kind, throw it, and run `npm run openapi`. A code that was released keeps its name
 * and its kind.
 */
export const errorCodes = { ...requestCodes, ...agentCodes }

export type ErrorCode = keyof typeof errorCodes

/** The kind of failure that is answered with a status; undefined when none is. */
export const kindOf = (status: number): ErrorKind | undefined =>
  (Object.keys(kinds) as ErrorKind[]).find((kind) => kinds[kind].status === status)
