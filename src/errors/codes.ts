import { agentCodes } from '#errors/codes/agents.ts'
import { type ErrorKind, kinds } from '#errors/codes/kinds.ts'
import { requestCodes } from '#errors/codes/requests.ts'

export type { ErrorKind } from '#errors/codes/kinds.ts'

/**
 * All error codes of the API. The list is published in the OpenAPI document and at `/docs/errors`. Programs branch on a
 * code to choose the next step: failures with the same remedy share a code. To add one, write it into a file of
 * `error-codes/` under its kind, throw it, and run `npm run openapi`. A released code keeps its name and its kind.
 */
export const errorCodes = { ...requestCodes, ...agentCodes }

export type ErrorCode = keyof typeof errorCodes

/** The kind of failure of a status; undefined if there is none. */
export const kindOf = (status: number): ErrorKind | undefined =>
  (Object.keys(kinds) as ErrorKind[]).find((kind) => kinds[kind].status === status)
