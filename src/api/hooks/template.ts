/** Maximum characters of one value in a message. */
const maxValueLength = 20_000

/** The value at a path such as `body.issue.title`, by own fields alone; undefined without one. */
function valueAt(values: unknown, path: string): unknown {
  let value = values
  for (const name of path.split('.')) {
    if (typeof value !== 'object' || value === null || !Object.hasOwn(value, name)) return undefined
    value = (value as Record<string, unknown>)[name]
  }
  return value
}

/** Replaces `{{path}}` by the value at the path: a text as it is, another value as JSON, and a missing one by nothing. */
export const fillTemplate = (template: string, values: Record<string, unknown>): string =>
  template.replaceAll(/\{\{\s*([\w.-]+)\s*\}\}/g, (_whole, path: string) => {
    const value = valueAt(values, path)
    const text = typeof value === 'string' ? value : value === undefined ? '' : JSON.stringify(value)
    return text.slice(0, maxValueLength)
  })
