import type { FastifyError } from 'fastify'

export interface ValidationFault {
  /** The part of the request, then the path in it. */
  loc: (string | number)[]
  msg: string
  type: string
}

/** An answer lists at most this many: a body can have thousands. */
const maxFaults = 20

const partNames = { body: 'body', querystring: 'query', params: 'path', headers: 'header' }

/** The faults that Ajv found in one part of a request. A missing or unknown property is the last name in its `loc`. */
export function validationFaults({
  validation = [],
  validationContext = 'body',
}: Pick<FastifyError, 'validation' | 'validationContext'>): ValidationFault[] {
  return validation.slice(0, maxFaults).map(({ instancePath, keyword, message, params }) => {
    const path = instancePath.split('/').slice(1)
    const property = params.missingProperty ?? params.additionalProperty
    const allowed = Array.isArray(params.allowedValues) ? `: ${params.allowedValues.join(', ')}` : ''
    const unknown = keyword === 'additionalProperties' ? 'is not a known field' : undefined
    return {
      loc: [partNames[validationContext], ...path, ...(typeof property === 'string' ? [property] : [])],
      msg: `${unknown ?? message ?? 'is not valid'}${allowed}`,
      type: keyword,
    }
  })
}

/** The faults in one line of text. */
export const faultsMessage = (faults: readonly ValidationFault[]): string =>
  faults.map(({ loc, msg }) => `${loc.join('.')} ${msg}`).join('; ')
