import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'

/**
 * An offset such as `+02:00` means its opposite to PostgreSQL: only names are taken. Throws AppError
 * `invalid_value`.
 */
export function requireTimeZone(name: string, param = 'time_zone'): void {
  try {
    if (!/^[a-z]/i.test(name)) throw new RangeError()
    new Intl.DateTimeFormat('en', { timeZone: name })
  } catch {
    throw new AppError('invalid_value', texts.unknownTimeZone, { param })
  }
}
