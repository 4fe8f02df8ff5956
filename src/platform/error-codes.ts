import { channelCodes } from '#platform/error-codes/channels.ts'
import { fileCodes } from '#platform/error-codes/files.ts'
import { instanceCodes } from '#platform/error-codes/instances.ts'
import { type ErrorKind, kinds } from '#platform/error-codes/kinds.ts'
import { organizationCodes } from '#platform/error-codes/organization.ts'
import { providerCodes } from '#platform/error-codes/providers.ts'
import { requestCodes } from '#platform/error-codes/requests.ts'
import { serverCodes } from '#platform/error-codes/server.ts'
import { skillCodes } from '#platform/error-codes/skills.ts'
import { turnCodes } from '#platform/error-codes/turns.ts'

export type { ErrorKind } from '#platform/error-codes/kinds.ts'

/**
 * Every code that an error of the API can have. The list is published in the OpenAPI document, at `/docs/errors` and in
 * docs/errors.md. To add a code, write it into a file of `error-codes/` under its kind, throw it, and run
 * `npm run openapi`. A code that was released keeps its name and its kind: programs compare with it.
 */
export const errorCodes = {
  ...requestCodes,
  ...organizationCodes,
  ...instanceCodes,
  ...turnCodes,
  ...providerCodes,
  ...fileCodes,
  ...channelCodes,
  ...skillCodes,
  ...serverCodes,
}

export type ErrorCode = keyof typeof errorCodes

/** The kind of failure that is answered with a status; undefined when none is. */
export const kindOf = (status: number): ErrorKind | undefined =>
  (Object.keys(kinds) as ErrorKind[]).find((kind) => kinds[kind].status === status)
