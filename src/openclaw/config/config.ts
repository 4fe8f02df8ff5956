import type { ApprovalMode, ModelProvider } from '#database/schema.ts'
import type { GatewaySecrets } from '#openclaw/gateway/gateway-secrets.ts'
import { isObject, mergePatch } from '#openclaw/json.ts'
import { agentModels, withModelPrefixes } from '#openclaw/models/agent-models.ts'
import { defaultModel, findModel, listedModels } from '#openclaw/models/models.ts'
import { bareModel, gatewayProviders } from '#openclaw/models/providers.ts'
import type { RoomPaths } from '#sandbox/driver.ts'
import { withRoom } from './room.ts'

/** The content of OpenClaw's own configuration file. */
export type GatewayConfig = Record<string, unknown>

/**
 * The URL of each provider's API, without `/v1` or `/v1beta`; undefined selects the vendor's own host. Gateways do not
 * get it: they ask the relay.
 */
export type BaseUrls = Readonly<Record<ModelProvider, string | undefined>>

export interface ConfigInputs {
  release: string
  provider: ModelProvider
  /** The relay's URL of the provider's API, without `/v1` or `/v1beta`. */
  baseUrl: string
  /** The path of the file of `GatewaySecrets` in the sandbox. */
  secretsFile: string
  port: number
  /** The chat channels, by OpenClaw's names for them. */
  channels: readonly ChannelSettings[]
  /**
   * The values of `skills.entries`, by OpenClaw's key of the skill, with the names of the variables in the shell of the
   * separate room, `shell_env`.
   */
  skills: Readonly<Record<string, Record<string, unknown>>>
  /** The agent's model with OpenClaw's name of the provider before it; undefined selects the default. */
  model?: string | null
  /** Models that turns have asked for and that no table lists, without a provider prefix. */
  unlistedModels?: readonly string[]
  /** Whether its commands run at once, after a person has allowed them, or never. */
  approvals?: ApprovalMode
  /** The separate room of the agent; null if its tools run beside the gateway. */
  room?: (RoomPaths & { workspace: string }) | null
  /** The URL of the proxy if it is the gateway's only way to other hosts; null without one. */
  proxyUrl?: string | null
  /** `tree` of parseOverrides. */
  overrides: Record<string, unknown>
}

/** OpenClaw's name for the file of secrets. */
const secretsProvider = 'chowder'
/** OpenClaw's maximum. After its default of 5 s a gateway that starts on a busy host would exit. */
const secretsTimeoutMs = 120_000

/** OpenClaw's reference to one of the gateway's secrets. The gateway reads them at its start and at each change. */
const reference = (name: keyof GatewaySecrets) => ({ source: 'file', provider: secretsProvider, id: `/${name}` })

export interface ChannelSettings {
  channel: string
  enabled: boolean
  /** All other values of `channels.<channel>`, with OpenClaw's own names. */
  config: Record<string, unknown>
}

/**
 * In code mode the model's JavaScript runs in the gateway's own process, which has the secrets of the instance. The
 * default `auto` enables it for current models at the vendors' own hosts.
 */
const withoutCodeMode = { tools: { codeMode: false } }

/** The channels whose plugins bypass the gateway's proxy, and have their own setting for one. */
const ownsProxy = ['matrix']

/** Removes code mode from overrides at any depth: agents and models have their own settings for it. */
function dropCodeMode(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(dropCodeMode)
  if (!isObject(value)) return value
  const kept = Object.entries(value).filter(([key]) => key !== 'codeMode')
  return Object.fromEntries(kept.map(([key, inner]) => [key, dropCodeMode(inner)]))
}

type Skills = ConfigInputs['skills']

/** OpenClaw's settings of a skill. */
const entriesOf = (skills: Skills) =>
  Object.fromEntries(Object.entries(skills).map(([name, { shell_env: _names, ...entry }]) => [name, entry]))

/** The variables of used skills in the shell of a separate room. */
function shellVariables(skills: Skills): Record<string, string> {
  const variables: Record<string, string> = {}
  for (const { enabled, env, shell_env: names } of Object.values(skills)) {
    if (enabled === false || !isObject(env) || !Array.isArray(names)) continue
    for (const name of names) if (typeof env[name] === 'string') variables[name] = env[name]
  }
  return variables
}

/** The whole configuration of a gateway: Chowder's defaults, the channels and skills, then the caller's overrides. */
export function renderConfig(inputs: ConfigInputs): GatewayConfig {
  const {
    release,
    provider,
    baseUrl,
    secretsFile,
    port,
    channels,
    skills,
    model = null,
    unlistedModels = [],
    approvals = 'auto',
    room = null,
    proxyUrl = null,
    overrides,
  } = inputs
  const { id, api, pathPrefix, headers } = gatewayProviders[provider]
  const channelProxy = (channel: string) =>
    proxyUrl !== null && ownsProxy.includes(channel) ? { proxy: proxyUrl } : {}
  const defaults = {
    gateway: {
      mode: 'local',
      port,
      bind: 'loopback',
      auth: { mode: 'token', token: reference('gatewayToken') },
      controlUi: { enabled: false },
      http: { endpoints: { responses: { enabled: true } } },
    },
    secrets: { providers: { [secretsProvider]: { source: 'file', path: secretsFile, timeoutMs: secretsTimeoutMs } } },
    models: {
      catalogRefresh: { enabled: false },
      providers: {
        [id]: {
          api,
          baseUrl: `${baseUrl}${pathPrefix}`,
          apiKey: reference('relayToken'),
          headers,
          models: gatewayModels(release, provider, [
            ...(model === null ? [] : [bareModel(model)]),
            ...unlistedModels,
            ...agentModels(overrides),
          ]),
        },
      },
    },
    agents: {
      defaults: {
        model: { primary: model ?? `${id}/${defaultModel(release, provider)}` },
        // Without this, the first turn of each session makes a second, hidden model call.
        utilityModel: '',
        skipBootstrap: true,
        heartbeat: { every: '0m' },
      },
    },
    // With the search tool, as in code mode, a model could not call the client's own tools.
    tools: { toolSearch: false },
    plugins: { allow: [id, ...channels.map(({ channel }) => channel)], slots: { memory: 'none' } },
    session: {
      dmScope: 'per-channel-peer', // each person has a separate conversation with the agent
      // OpenClaw searches for old sessions in a thread that delays the first turn by 0.8 s and keeps 130 MB. With
      // continuous turns it may begin again twice in a second.
      ...(!setsMaintenance(overrides) && { maintenance: { mode: 'warn' } }),
    },
    ...(channels.length > 0 && {
      channels: Object.fromEntries(
        channels.map(({ channel, enabled, config }) => [channel, { ...channelProxy(channel), ...config, enabled }]),
      ),
    }),
    ...(Object.keys(skills).length > 0 && { skills: { entries: entriesOf(skills) } }),
    browser: { enabled: false },
    discovery: { mdns: { mode: 'off' } },
    update: { checkOnStart: false },
    // The log file would be /tmp/openclaw, shared by all agents of a user. The gateway's output has the same lines.
    logging: { level: 'silent' },
  }
  const own = dropCodeMode(withModelPrefixes(provider, overrides)) as Record<string, unknown>
  const overridden = mergePatch(defaults, room ? withRoom(own, room, room.workspace, shellVariables(skills)) : own)
  // Chowder's proxy is the only way out.
  const withoutProxy = proxyUrl !== null && isObject(own.proxy) ? { proxy: { proxyUrl: null } } : {}
  return mergePatch(
    mergePatch(overridden, { ...withoutCodeMode, ...withoutProxy }),
    execPolicies[approvals],
  ) as GatewayConfig
}

/** OpenClaw's policy for commands. With `auto` it is that of the overrides, or OpenClaw's own, which asks nobody. */
const execPolicies: Record<ApprovalMode, GatewayConfig> = {
  auto: {},
  ask: { tools: { exec: { host: 'gateway', mode: 'ask' }, elevated: { enabled: false } } },
  off: { tools: { exec: { host: 'gateway', mode: 'deny' }, elevated: { enabled: false } } },
}

/** Whether overrides set OpenClaw's cleanup of old sessions. */
const setsMaintenance = ({ session }: Record<string, unknown>) => isObject(session) && session.maintenance !== undefined

/**
 * OpenClaw's entries for the models of the table and the additional ones. For a model without an entry OpenClaw drops
 * images without an error, and limits Anthropic to 4,096 tokens.
 */
function gatewayModels(release: string, provider: ModelProvider, additional: readonly string[]) {
  const ids = new Set([...listedModels(release, provider).map(({ id }) => id), ...additional])
  return [...ids].map((id) => {
    const { name, images, thinking, context_window, max_output_tokens } = findModel(release, provider, id)
    return {
      id,
      name,
      input: images ? ['text', 'image'] : ['text'],
      reasoning: thinking,
      contextWindow: context_window,
      maxTokens: max_output_tokens,
      // Else OpenClaw sends OpenAI no key of the prompt cache: it does so by itself at the vendor's own host only.
      ...(provider === 'openai' && { compat: { supportsPromptCacheKey: true } }),
    }
  })
}

/**
 * The part of a configuration that a running gateway can be given: without the gateway's own keys, and without what says
 * where its secrets are, which stay those of its start. With `keepsProxy` also without the URL of the proxy, which is
 * among its secrets, or in the configuration of a gateway that an earlier version started.
 */
export function changeablePart(config: GatewayConfig, keepsProxy: boolean): GatewayConfig {
  const { secrets: _secrets, ...changeable } = structuredClone(config)
  for (const key of gatewayOwned) delete changeable[key]
  const { gateway, models } = changeable
  if (isObject(gateway)) delete gateway.auth
  if (keepsProxy) {
    const { proxyUrl: _kept, ...proxy } = isObject(changeable.proxy) ? changeable.proxy : {}
    changeable.proxy = proxy
  }
  const providers = isObject(models) && isObject(models.providers) ? Object.values(models.providers) : []
  for (const provider of providers) if (isObject(provider)) delete provider.apiKey
  return changeable
}

/**
 * Top-level keys that the gateway itself writes into its file. Observed with 2026.9.6: starts and turns do not change
 * the file. The first `config.patch` adds `meta` with the version that wrote it and the finished migrations. Plugins
 * and channels that other keys enable are enabled in memory only.
 */
export const gatewayOwned: readonly string[] = ['meta']

/** The file's new content for a stopped gateway: the rendered configuration and the gateway's own keys. */
export function mergeForFile(rendered: GatewayConfig, existing: GatewayConfig | null): GatewayConfig {
  const own = Object.entries(existing ?? {}).filter(([key]) => gatewayOwned.includes(key))
  return { ...rendered, ...Object.fromEntries(own) }
}
