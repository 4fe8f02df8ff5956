/**
 * The value itself, where a test relies on its being there; throws at the caller's line when it is null or undefined.
 */
export function present<T>(value: T): NonNullable<T> {
  if (value !== null && value !== undefined) return value
  const error = new Error(`expected a value, found ${value}`)
  Error.captureStackTrace(error, present)
  throw error
}
