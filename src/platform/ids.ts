import crypto from 'node:crypto'

const uuid = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i

/** A new id; ids sort by time of creation. */
export const newId = (): string => crypto.randomUUIDv7() // a named import would end an older Node.js before it says so

/** Whether a text has the form of an id. PostgreSQL throws for other texts, which are a 404 in the API. */
export const isId = (text: string): boolean => uuid.test(text)

/** Converts an id to the form of the database: a caller may send it in capitals. Any other text stays unchanged. */
export const canonicalId = (id: string): string => (isId(id) ? id.toLowerCase() : id)
