import type { ModelProvider } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { isObject, nestedEntries } from '#openclaw/json.ts'
import { checkAgentModels } from '#openclaw/models/check-models.ts'
import { checkAgainstSchema } from './config-schema.ts'
import { type Overrides, parseOverrides } from './overrides.ts'

/**
 * Parses `openclaw_config` for an instance before it is stored, whether the instance runs or not. Throws AppError with
 * the fault: the errors of `parseOverrides`, code mode, an unknown model of the provider, or a violation of the
 * release's schema, in OpenClaw's own words.
 */
export function checkOverrides(release: string, provider: ModelProvider, config: Record<string, unknown>): Overrides {
  const overrides = parseOverrides(config)
  const { tree } = overrides
  if (isObject(tree.agent)) {
    const path = `agent.${Object.keys(tree.agent)[0] ?? ''}`
    throw new AppError(
      'invalid_openclaw_config',
      `openclaw_config: ${JSON.stringify(path)} is no setting: the only one of agent is agent.system_prompt. ` +
        'OpenClaw’s own settings of agents begin with agents.defaults.',
      { param: 'openclaw_config' },
    )
  }
  for (const { key, value } of nestedEntries(tree)) {
    if (key !== 'codeMode' || value === false) continue
    throw new AppError(
      'invalid_openclaw_config',
      'openclaw_config: "codeMode" cannot be overridden: Chowder sets tools.codeMode itself, to false. In code mode ' +
        'the model’s JavaScript would run in the process that has the secrets of the instance.',
      { param: 'openclaw_config' },
    )
  }
  checkAgainstSchema(release, tree)
  checkAgentModels(release, provider, tree)
  return overrides
}
