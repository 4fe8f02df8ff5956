import { ErrorBody } from './http-errors.ts'

/**
 * The answers of a route that are failures of its own. Those that any route may give (401, 403, 422, 429, 500, 503) are
 * added to the document by themselves.
 */
export const failures = <const S extends readonly number[]>(...statuses: S) =>
  Object.fromEntries(statuses.map((status) => [status, ErrorBody])) as { [K in S[number]]: typeof ErrorBody }
