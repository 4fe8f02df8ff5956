import { type ParsedUrlQuery, parse } from 'node:querystring'

/**
 * Parses the query of a URL. `metadata[key]=value` becomes an entry of the object `metadata`: the style `deepObject` of
 * OpenAPI. A key may contain brackets. `metadata.key=value` means the same: shells and curl leave it unchanged.
 */
export function parseQuery(text: string): Record<string, ParsedUrlQuery[string] | ParsedUrlQuery> {
  const query: Record<string, ParsedUrlQuery[string] | ParsedUrlQuery> = Object.create(null)
  for (const [name, value] of Object.entries(parse(text))) {
    const [, object = '', inBrackets, afterDot] = /^([^[\].]+)(?:\[(.*)\]|\.(.+))$/s.exec(name) ?? []
    const key = inBrackets ?? afterDot
    if (key === undefined) query[name] = value
    else {
      const entries = query[object]
      query[object] = { ...(typeof entries === 'object' && !Array.isArray(entries) && entries), [key]: value }
    }
  }
  return query
}
