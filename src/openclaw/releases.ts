import { createHash } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { ModelProvider } from '#database/schema.ts'

const root = join(import.meta.dirname, '../../releases')

/** The release of an instance whose creator names none. */
export const defaultRelease = 'v1'

const known = readdirSync(root, { withFileTypes: true })
  .filter((entry) => entry.isDirectory())
  .map((entry) => entry.name)
  .sort()

/** Every release that Chowder ships, by name, in order. */
export const knownReleases = (): readonly string[] => known

/** Where Chowder keeps what the release installs (`package.json`, `package-lock.json`) and what is known of it (`models.json`, `abilities.json`). */
export function releaseSource(release: string): string {
  if (!known.includes(release)) throw new Error(`no release ${JSON.stringify(release)}: there are ${known.join(', ')}`)
  return join(root, release)
}

interface Facts {
  openclawVersion: string
  packages: number
  lockHash: string
  models: Record<ModelProvider, string>
  abilities: Record<ModelProvider, { images: string[]; noTemperature: string[]; noTopP: string[] }>
}

const facts = new Map<string, Facts>()

function factsOf(release: string): Facts {
  const before = facts.get(release)
  if (before) return before
  const source = releaseSource(release)
  const lock = readFileSync(join(source, 'package-lock.json'))
  const { packages } = JSON.parse(lock.toString('utf8')) as {
    packages: Record<string, { version?: string; optional?: boolean }>
  }
  const openclawVersion = packages['node_modules/openclaw']?.version
  if (!openclawVersion) throw new Error(`the lock file of release ${release} holds no openclaw`)
  const now: Facts = {
    openclawVersion,
    packages: Object.values(packages).filter((entry) => entry.version && !entry.optional).length,
    lockHash: createHash('sha256').update(lock).digest('hex'),
    models: JSON.parse(readFileSync(join(source, 'models.json'), 'utf8')) as Facts['models'],
    abilities: JSON.parse(readFileSync(join(source, 'abilities.json'), 'utf8')) as Facts['abilities'],
  }
  facts.set(release, now)
  return now
}

/** The version of the package `openclaw` that the release locks. */
export const openclawVersion = (release: string): string => factsOf(release).openclawVersion

/** How many packages the release has at least: those that are optional depend on the machine. */
export const packageCount = (release: string): number => factsOf(release).packages

/** The model of an instance that chose none, without the provider's name. */
export const defaultModel = (release: string, provider: ModelProvider): string => factsOf(release).models[provider]

/** What of a message OpenClaw hands on to a model; it drops the rest in silence. */
export interface Abilities {
  images: boolean
  temperature: boolean
  topP: boolean
}

/**
 * What was seen to reach a model, without the provider's name, through this release: OpenClaw shows images only to those
 * it knows to see, and tells models that think no temperature.
 */
export function abilitiesOf(release: string, provider: ModelProvider, model: string): Abilities {
  const { images, noTemperature, noTopP } = factsOf(release).abilities[provider]
  const isIn = (list: readonly string[]) => list.includes(model) || list.includes('*')
  return { images: isIn(images), temperature: !isIn(noTemperature), topP: !isIn(noTopP) }
}

/**
 * Where an installed release is on this host. Named after its lock file, so that a changed lock is another folder and
 * what runs from the old one is left alone.
 */
export const releaseFolder = (dataDir: string, release: string): string =>
  join(dataDir, 'releases', `${release}-${factsOf(release).lockHash.slice(0, 12)}`)
