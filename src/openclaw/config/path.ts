/** One segment of a path: a key of an object, or an index of an array. */
export type Segment = string | number
export type Path = readonly Segment[]

/** The text of a path, such as `a.b[0]["c.d"]`. */
export const formatPath = (path: Path) =>
  path
    .map((segment, index) => {
      if (typeof segment === 'number') return `[${segment}]`
      if (!/^[^.[\]"]+$/.test(segment)) return `[${JSON.stringify(segment)}]`
      return index === 0 ? segment : `.${segment}`
    })
    .join('')
