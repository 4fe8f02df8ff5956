import { type TProperties, type TSchema, Type } from '@sinclair/typebox'
import { Value } from '@sinclair/typebox/value'
import type { Outgoing } from './dockerd.ts'
import { Refusal } from './refusal.ts'

/** The clients of the proxy: the processes that serve the API, or workers. */
export type Share = 'api' | 'worker'

/** The names of the networks that the firewall separates from the host: that of the agents, then the others. */
export type Networks = readonly [string, ...string[]]

/** A request for a permitted call. */
export interface CallRequest {
  /** The named parts of the path, of which the path has some. */
  parts: Record<'container' | 'execution' | 'id' | 'image', string>
  query: Record<string, string>
  /** Undefined unless it is JSON. */
  body: unknown
  /** Aborted when the call has ended, for any reason. */
  signal: AbortSignal
  /** Sets the deadline of the call, in ms from now. */
  within(ms: number): void
}

/** The call to make of dockerd, or the answer itself. */
type Decision = (Omit<Outgoing, 'method' | 'upgrade'> & { deadlineMs?: number }) | { answer: unknown }

export interface Call {
  method: 'GET' | 'POST' | 'DELETE'
  /** Matches the whole path. */
  path: RegExp
  /** A request with another parameter is refused. */
  query: TSchema
  /** Whether the connection becomes a stream to a program. */
  upgrade: boolean
  /** Throws a Refusal. */
  decide(request: CallRequest): Promise<Decision> | Decision
}

/** An object without other properties. */
export const closed = (properties: TProperties) => Type.Object(properties, { additionalProperties: false })

const make =
  (upgrade: boolean) =>
  (method: Call['method'], path: string, query: TProperties, decide: Call['decide']): Call => ({
    method,
    path: new RegExp(`^${path}$`),
    query: closed(query),
    upgrade,
    decide,
  })
/** An entry of the list, whose path is a pattern. */
export const call = make(false)
/** A call that opens a stream to a program. */
export const stream = make(true)

/** Returns the value if it has the shape. Throws a Refusal that names `title`. */
export function check<T extends object>(title: string, shape: TSchema, value: unknown): T {
  const fault = Value.Errors(shape, value).First()
  if (fault) throw new Refusal(403, `${title} is not as Chowder makes it: ${fault.path || '/'}: ${fault.message}`)
  return value as T
}

/** Throws a Refusal when the text is no JSON. */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    throw new Refusal(400, 'the JSON is not valid')
  }
}
