/**
 * The form of all timestamps in answers except those of keys and files: `2026-02-14T16:00:00.000000+00:00`.
 * Organizations and instances are documented with it.
 */
export const toMicroseconds = (date: Date): string => date.toISOString().replace('Z', '000+00:00')

/** The documented form of the timestamps of keys and files: `2026-02-14T12:00:00Z`, without fractions of a second. */
export const toSeconds = (date: Date): string => date.toISOString().replace(/\.\d{3}Z$/, 'Z')

const iso8601 = /^(\d{4}-\d\d-\d\d)T\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)$/

/**
 * Parses an ISO 8601 time with a zone, in any of the documented forms. Null for another form, a day that does not
 * exist, and a year in UTC outside 1 to 9999, which the database refuses.
 */
export function parseTimestamp(text: string): Date | null {
  const day = iso8601.exec(text)?.[1]
  const date = new Date(text)
  if (day === undefined || Number.isNaN(date.getTime()) || !/^(?!0000)\d{4}-/.test(date.toISOString())) return null
  // Date parses a 30th of February as a day in March.
  return new Date(`${day}T00:00:00Z`).toISOString().startsWith(day) ? date : null
}
