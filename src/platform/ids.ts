import crypto from 'node:crypto'

const uuid = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i

/** A new id; sorts by the time it was made. */
export const newId = (): string => crypto.randomUUIDv7() // a named import would end an older Node.js before it says so

/** Whether a text has the form of an id. PostgreSQL throws for other texts, which are a 404 in the API. */
export const isId = (text: string): boolean => uuid.test(text)

/** An id as the database writes it: a caller may send it in capitals. A text that is no id stays as it is. */
export const canonicalId = (id: string): string => (isId(id) ? id.toLowerCase() : id)
