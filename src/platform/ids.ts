import crypto from 'node:crypto'

const uuid = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i

/** A new id; sorts by the time it was made. */
export const newId = (): string => crypto.randomUUIDv7() // not a named import: an older Node.js must get as far as saying so

/** A malformed id is an unknown one: asking the database would be an error there instead of a 404. */
export const isId = (text: string): boolean => uuid.test(text)

/** An id as the database writes it: a caller may send it in capitals. */
export const canonicalId = (id: string): string => id.toLowerCase()
