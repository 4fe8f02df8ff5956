import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'

/**
 * Only names are accepted: PostgreSQL inverts the sign of an offset such as `+02:00`. Throws AppError `invalid_value`.
 */
export function requireTimeZone(name: string, param = 'time_zone'): void {
  try {
    if (!/^[a-z]/i.test(name)) throw new RangeError()
    new Intl.DateTimeFormat('en', { timeZone: name })
  } catch {
    throw new AppError('invalid_value', texts.unknownTimeZone, { param })
  }
}
