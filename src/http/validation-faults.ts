import type { ErrorObject } from 'ajv'
import type { FastifyError } from 'fastify'
import { describeFault, type RequestPart } from './fault-texts.ts'

export interface ValidationFault {
  /** The part of the request, then the path in it. */
  loc: (string | number)[]
  msg: string
  type: string
}

/** The `type` of the fault of an `Idempotency-Key` that was used with another request. */
export const idempotencyFault = 'idempotency'

/** Maximum faults in an answer: a body can have thousands. */
const maxFaults = 20

const partNames = { body: 'body', querystring: 'query', params: 'path', headers: 'header' } as const

/** Whether an error belongs to a branch of the union of another error. */
const isInBranch = (error: ErrorObject | undefined, union: ErrorObject) =>
  error?.schemaPath.startsWith(`${union.schemaPath}/`) &&
  (error.instancePath === union.instancePath || error.instancePath.startsWith(`${union.instancePath}/`))

/** The errors of a union's best branch, or one error with the types of all branches. */
function errorsOfUnion(union: ErrorObject, errors: readonly ErrorObject[]): readonly ErrorObject[] {
  const branches = Map.groupBy(errors, ({ schemaPath }) => schemaPath.slice(union.schemaPath.length + 1).split('/')[0])
  const mismatches = errors.filter((error) => error.keyword === 'type' && error.instancePath === union.instancePath)
  const fitting = [...branches.values()].filter((branch) => !branch.some((error) => mismatches.includes(error)))
  const [best] = fitting.sort((a, b) => a.length - b.length)
  return best ?? [{ ...union, keyword: 'type', params: { type: mismatches.flatMap(({ params }) => params.type) } }]
}

/** Removes the errors of branches of unions that fit worse. Ajv lists the branches before their union. */
function withBestBranches(errors: readonly ErrorObject[]): ErrorObject[] {
  const kept: ErrorObject[] = []
  for (const error of errors) {
    if (error.keyword !== 'anyOf') {
      kept.push(error)
      continue
    }
    let first = kept.length
    while (isInBranch(kept[first - 1], error)) first -= 1
    for (const best of errorsOfUnion(error, kept.splice(first))) kept.push(best)
  }
  return kept
}

/** Whether the neighbouring error contains the same or more information. */
function isImplied({ keyword, instancePath, params, data }: ErrorObject, before?: ErrorObject, after?: ErrorObject) {
  if (keyword === 'propertyNames') return true
  if (keyword === 'type') return after?.keyword === 'enum' && after.instancePath === instancePath
  if (before?.instancePath !== instancePath) return false
  if (keyword === 'pattern') return before.keyword === 'minLength' && data === ''
  return keyword === 'discriminator' && before.keyword === 'required' && before.params.missingProperty === params.tag
}

/** The path of a JSON pointer. */
const pathOf = (pointer: string) =>
  pointer
    .split('/')
    .slice(1)
    .map((name) => name.replaceAll('~1', '/').replaceAll('~0', '~'))

/**
 * Ajv's faults in one part of a request, in plain words. A missing or unknown property is the last name in its `loc`.
 * `hasBody` is false when the request had none.
 */
export function validationFaults(
  { validation = [], validationContext = 'body' }: Pick<FastifyError, 'validation' | 'validationContext'>,
  hasBody: boolean,
): ValidationFault[] {
  const part: RequestPart = partNames[validationContext]
  return withBestBranches(validation as ErrorObject[])
    .filter((error, at, all) => !isImplied(error, all[at - 1], all[at + 1]))
    .slice(0, maxFaults)
    .map((error) => {
      const { missingProperty, additionalProperty } = error.params
      const property: string | undefined = missingProperty ?? additionalProperty
      return {
        loc: [part, ...pathOf(error.instancePath), ...(property === undefined ? [] : [property])],
        msg: describeFault(error, part, hasBody),
        type: error.keyword,
      }
    })
}

/** The wrong field, as `metadata.team`; undefined when it is the whole part, or more than one field. */
export function paramOf(faults: readonly ValidationFault[]): string | undefined {
  const [param, ...others] = new Set(faults.map(({ loc }) => loc.slice(1).join('.')))
  return others.length === 0 && param !== '' ? param : undefined
}

/** The faults in one line of text. */
export const faultsMessage = (faults: readonly ValidationFault[]): string =>
  faults.map(({ loc, msg }) => `${loc.map((name) => (name === '' ? '""' : name)).join('.')} ${msg}`).join('; ')
