import type { Tier } from '#database/schema.ts'
import type { RelayAddress } from '#instances/regions.ts'
import type { BaseUrls } from '#openclaw/config/config.ts'
import { firstGoodVersion } from '#openclaw/release/advisories.ts'
import type { Config } from '#settings/config.ts'
import { type ResourceSettings, readResourceSettings } from '#settings/resources.ts'
import { readWarmPool, type WarmPoolSize } from '#settings/warm-pool.ts'

/** The settings that both the API and the workers use. */
export interface SharedSettings {
  /** The base URLs of the model providers. */
  baseUrls: BaseUrls
  /** The address of the relay for agents. */
  relay: RelayAddress
  /** The registry of skills; undefined for OpenClaw's own. */
  clawhubUrl: string | undefined
  /** The resource limits of agents. */
  resources: ResourceSettings
  /** How many warm instances a region keeps. */
  warmPool: WarmPoolSize
  /** The oldest version of OpenClaw that agents may start with. */
  minOpenclawVersion: string
}

export const sharedSettings = (config: Config): SharedSettings => ({
  baseUrls: {
    anthropic: config.ANTHROPIC_BASE_URL,
    openai: config.OPENAI_BASE_URL,
    gemini: config.GEMINI_BASE_URL,
  },
  relay: { url: config.RELAY_URL, port: config.RELAY_PORT },
  clawhubUrl: config.CLAWHUB_REGISTRY,
  resources: resourceSettings(config),
  warmPool: readWarmPool(config.WARM_POOL),
  minOpenclawVersion: config.OPENCLAW_MIN_VERSION ?? firstGoodVersion,
})

/** The configuration was checked. */
const resourceSettings = (config: Config): ResourceSettings =>
  readResourceSettings(config.AGENT_RESOURCES) as ResourceSettings

/** The tier of a new organization. Without Stripe no tier can be bought, so the number of agents has no limit. */
export const defaultTier = (config: Config): Tier => (config.STRIPE_SECRET_KEY ? 'shrimp' : 'whale')

/** How long turns may keep an API from ending, in ms. */
export const turnDrainMs = (config: Config): number => config.DRAIN_SECONDS * 1000
