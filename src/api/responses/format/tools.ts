import { invalidField } from './invalid-field.ts'
import type { CreateResponse } from './request-schema.ts'
import type { ResponseTool, ResponseToolChoice } from './response-schema.ts'

/** The tools offered to the agent, and the choice among them for its model. */
export interface OfferedTools {
  tools: ResponseTool[]
  toolChoice: Exclude<ResponseToolChoice, { type: 'allowed_tools' }>
}

/** Reads the client's tools. Throws AppError invalid for an unsuitable one. */
export function readTools(tools: CreateResponse['tools'], isParallel: boolean): ResponseTool[] {
  const names = new Set<string>()
  if (!isParallel && tools?.length) {
    throw invalidField(
      'parallel_tool_calls',
      'an agent cannot be kept from calling several tools at once.',
      'unsupported_value',
    )
  }
  return (tools ?? []).map(({ type, name, description, parameters, strict }, index) => {
    if (type !== 'function') {
      throw invalidField(
        `tools.${index}.type`,
        'must be "function": an agent has its own tools of other types.',
        'unsupported_value',
      )
    }
    if (name === undefined) throw invalidField(`tools.${index}.name`, 'is missing.')
    if (names.has(name)) throw invalidField(`tools.${index}.name`, `there are two tools with the name ${name}.`)
    names.add(name)
    return {
      type,
      name,
      description: description ?? null,
      parameters: parameters ?? null,
      strict: strict === false ? false : null,
    }
  })
}

/** Applies `tool_choice` to the tools. Throws AppError invalid when it names unknown tools. */
export function readToolChoice(
  choice: CreateResponse['tool_choice'],
  tools: ResponseTool[],
): OfferedTools & { echo: ResponseToolChoice } {
  const find = (name: string | undefined, param: string): ResponseTool => {
    const tool = tools.find((one) => one.name === name)
    if (!tool) throw invalidField(param, `there is no tool ${JSON.stringify(name ?? '')} in tools.`)
    return tool
  }
  const offer = (allowed: ResponseTool[], mode: 'none' | 'auto' | 'required'): OfferedTools => {
    if (mode === 'required' && allowed.length === 0) throw invalidField('tool_choice', '"required" needs tools.')
    return { tools: allowed, toolChoice: mode }
  }
  if (typeof choice === 'string') return { ...offer(tools, choice), echo: choice }
  if (!choice) return { ...offer(tools, 'auto'), echo: 'auto' }
  if (choice.type === 'function') {
    const toolChoice = { type: 'function' as const, name: find(choice.name, 'tool_choice.name').name }
    return { tools, toolChoice, echo: toolChoice }
  }
  if (choice.type !== 'allowed_tools') throw invalidField('tool_choice.type', 'must be "function" or "allowed_tools".')
  const allowed = (choice.tools ?? []).map(({ name }, index) => find(name, `tool_choice.tools.${index}`))
  const mode = choice.mode ?? 'auto'
  const names = allowed.map(({ name }) => ({ type: 'function' as const, name }))
  return { ...offer(allowed, mode), echo: { type: 'allowed_tools', mode, tools: names } }
}
