import { readFile } from 'node:fs/promises'
import { Ajv, type ValidateFunction } from 'ajv'
import { isObject } from '#openclaw/json.ts'
import type { RecordedFrame } from './recorded-frames.ts'

interface ProtocolSchema {
  definitions: Record<string, { properties?: Record<string, { properties?: Record<string, object> }> }>
}

/**
 * The schema that OpenClaw publishes is older than the gateway, which has more properties: objects are open to them.
 * One property of the gateway is a fraction where the schema has an integer.
 */
async function readSchema(): Promise<ProtocolSchema> {
  const file = new URL('../protocol.schema.json', import.meta.resolve('@openclaw/gateway-protocol'))
  const open = (key: string, value: unknown) => (key === 'additionalProperties' && value === false ? true : value)
  const schema = JSON.parse(await readFile(file, 'utf8'), open) as ProtocolSchema
  const eventLoop = schema.definitions.ChannelsStatusResult?.properties?.eventLoop?.properties
  if (!eventLoop?.intervalMs) throw new Error('the schema has no eventLoop.intervalMs: remove its exception')
  eventLoop.intervalMs = { type: 'number' }
  return schema
}

/** `sessions.list` and `Params` give `SessionsListParams`. */
const definitionName = (name: string, kind: string) =>
  `${name.replace(/(?:^|[.-])(\w)/g, (_, first: string) => first.toUpperCase())}${kind}`

/** The faults of recorded frames, each with its name, and the number of checks of each name. */
export interface JudgedFrames {
  faults: string[]
  checked: Map<string, number>
}

/**
 * Judges frames by the schema of OpenClaw's protocol: each as a frame, and the parameters of calls, the answers and the
 * events by their own definitions, where the schema has one.
 */
export async function judgeFrames(frames: readonly RecordedFrame[]): Promise<JudgedFrames> {
  const schema = await readSchema()
  const ajv = new Ajv({ strict: false, allErrors: true })
  ajv.addSchema(schema, 'protocol')
  const validators = new Map<string, ValidateFunction>()
  const faults = new Set<string>()
  const checked = new Map<string, number>()

  function check(name: string, pointer: string, value: unknown): void {
    const validate = validators.get(pointer) ?? ajv.compile({ $ref: `protocol#${pointer}` })
    validators.set(pointer, validate)
    checked.set(name, (checked.get(name) ?? 0) + 1)
    if (validate(value)) return
    for (const { instancePath, message } of validate.errors ?? []) faults.add(`${name}${instancePath} ${message}`)
  }
  function checkDefinition(name: string, definition: string, value: unknown): void {
    if (schema.definitions[definition]) check(name, `/definitions/${definition}`, value)
  }

  const methods = new Map<string, string>()
  for (const { connection, frame } of frames) {
    const { type, id, event, method, params, ok, payload } = frame
    check(`a frame ${type} ${method ?? event ?? ''}`.trimEnd(), '', frame)
    if (type === 'req') {
      methods.set(`${connection} ${id}`, String(method))
      checkDefinition(`${method} params`, definitionName(String(method), 'Params'), params)
    } else if (type === 'res' && ok === true) {
      const called = methods.get(`${connection} ${id}`) ?? ''
      const definition = isObject(payload) && payload.type === 'hello-ok' ? 'HelloOk' : definitionName(called, 'Result')
      checkDefinition(`${called} result`, definition, payload)
    } else if (type === 'event') {
      checkDefinition(`${event} event`, definitionName(String(event), 'Event'), payload)
    }
  }
  return { faults: [...faults], checked }
}
