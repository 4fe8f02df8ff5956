import type { ModelProvider } from '#database/schema.ts'
import { mergePatch } from './json.ts'
import { gatewayProviders, providerHosts } from './providers.ts'
import { defaultModel } from './releases.ts'

/** The content of OpenClaw's own configuration file. */
export type GatewayConfig = Record<string, unknown>

/** Where each provider's API is, without `/v1` or `/v1beta`; undefined is the vendor's own host. */
export type BaseUrls = Readonly<Record<ModelProvider, string | undefined>>

export interface ConfigInputs {
  release: string
  provider: ModelProvider
  /** null when the organization has no key any more: turns then fail with the gateway's own words. */
  providerKey: string | null
  baseUrl: string | undefined
  token: string
  port: number
  /** The chat channels, by OpenClaw's names for them. */
  channels: readonly ChannelSettings[]
  /** What stands under `skills.entries`, by OpenClaw's key of the skill. */
  skills: Readonly<Record<string, Record<string, unknown>>>
  /** `tree` of parseOverrides. */
  overrides: Record<string, unknown>
}

export interface ChannelSettings {
  channel: string
  enabled: boolean
  /** Everything else that stands under `channels.<channel>`, under OpenClaw's own names. */
  config: Record<string, unknown>
}

/** The whole configuration of a gateway: Chowder's defaults, the channels and skills, then the caller's overrides. */
export function renderConfig(inputs: ConfigInputs): GatewayConfig {
  const { release, provider, providerKey, baseUrl, token, port, channels, skills, overrides } = inputs
  const { id, api, pathPrefix } = gatewayProviders[provider]
  const defaults = {
    gateway: {
      mode: 'local',
      port,
      bind: 'loopback',
      auth: { mode: 'token', token },
      controlUi: { enabled: false },
      http: { endpoints: { responses: { enabled: true } } },
    },
    models: {
      catalogRefresh: { enabled: false },
      providers: {
        [id]: {
          api,
          baseUrl: `${(baseUrl ?? providerHosts[provider]).replace(/\/+$/, '')}${pathPrefix}`,
          ...(providerKey !== null && { apiKey: providerKey }),
          models: [],
        },
      },
    },
    agents: {
      defaults: {
        model: { primary: `${id}/${defaultModel(release, provider)}` },
        // Else the first turn of each session makes a second, hidden model call.
        utilityModel: '',
        skipBootstrap: true,
        heartbeat: { every: '0m' },
      },
    },
    // Hidden behind a search tool, a client's own tools could not be called.
    tools: { toolSearch: false },
    plugins: { allow: [id, ...channels.map(({ channel }) => channel)], slots: { memory: 'none' } },
    // One person's messages never show up in another's conversation.
    session: { dmScope: 'per-channel-peer' },
    ...(channels.length > 0 && {
      channels: Object.fromEntries(channels.map(({ channel, enabled, config }) => [channel, { ...config, enabled }])),
    }),
    ...(Object.keys(skills).length > 0 && { skills: { entries: skills } }),
    browser: { enabled: false },
    discovery: { mdns: { mode: 'off' } },
    update: { checkOnStart: false },
    // Its log file would be /tmp/openclaw, shared by all agents of a user; the same lines go to its output.
    logging: { level: 'silent' },
  }
  return mergePatch(defaults, overrides) as GatewayConfig
}

/**
 * Top-level keys that the gateway writes into its file by itself. Seen with 2026.9.6: starts and turns leave the file
 * as it is; the first `config.patch` adds `meta` with the version that wrote it and the migrations it need not repeat.
 * Plugins and channels that are switched on as a consequence of other keys are kept in memory only.
 */
export const gatewayOwned: readonly string[] = ['meta']

/** What to write while the gateway is down: what is rendered and the gateway's own keys. All else in the file is dropped. */
export function mergeForFile(rendered: GatewayConfig, existing: GatewayConfig | null): GatewayConfig {
  const own = Object.entries(existing ?? {}).filter(([key]) => gatewayOwned.includes(key))
  return { ...rendered, ...Object.fromEntries(own) }
}
