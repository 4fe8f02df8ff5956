import { AppError } from '#errors/app-error.ts'
import { isObject } from '#openclaw/json.ts'
import { isWithheld, malformed, parse, type RegistryAnswer, send, sentence } from './clawhub-http.ts'
import { type Verdict, verdictOf, withoutFiles } from './clawhub-verdict.ts'
import { isVersion, referenceOf, referenceText, type SkillReference } from './skill-reference.ts'

/** OpenClaw's own default. */
const defaultRegistry = 'https://clawhub.ai'

const defaultTimeoutMs = 10_000
const maxFiles = 1000
/** The registry's own limit. */
const maxPathCharacters = 500
const maxDescriptionCharacters = 2000

interface FoundSkill extends SkillReference {
  name: string
  description: string
  version: string | null
}

/** One version of a skill, and whether it may be installed. */
export interface SkillRelease {
  version: string
  verdict: Verdict
  /** The published files with their SHA-256 in hex; null when the registry does not list them. */
  files: ReadonlyMap<string, string> | null
}

/**
 * The registry of skills. Its answers are not trusted: they are limited to 2 MiB and 10 s, and redirects are not
 * followed. Methods throw AppError `gateway_unreachable` for a missing or malformed answer, and `unavailable` when the
 * registry asks the client to wait.
 */
export interface ClawHub {
  search(query: string, limit: number): Promise<FoundSkill[]>
  /** The requested version, or the latest one. Throws AppError `invalid` when it does not exist or is withheld. */
  release(reference: SkillReference, version: string | undefined): Promise<SkillRelease>
}

const textOr = (value: unknown, fallback: string) => (typeof value === 'string' ? value : fallback)

function toFoundSkill(row: unknown): FoundSkill[] {
  if (!isObject(row) || row.source !== 'clawhub') return []
  const reference = referenceOf(row.ownerHandle, row.slug)
  if (!reference) return []
  const { displayName, summary, version } = row
  return [
    {
      ...reference,
      name: sentence(textOr(displayName, reference.slug)),
      description: textOr(summary, '').slice(0, maxDescriptionCharacters),
      version: isVersion(version) ? version : null,
    },
  ]
}

function filesIn(body: Record<string, unknown>): ReadonlyMap<string, string> | null {
  const files = isObject(body.version) ? body.version.files : undefined
  if (files === undefined || files === null) return null
  if (!Array.isArray(files) || files.length > maxFiles) throw malformed()
  return new Map(
    files.map((file) => {
      const { path, sha256 } = isObject(file) ? file : {}
      if (typeof path !== 'string' || typeof sha256 !== 'string' || !/^[0-9a-f]{64}$/.test(sha256)) throw malformed()
      if (
        path.length > maxPathCharacters ||
        path.split('/').some((part) => part === '' || part === '.' || part === '..') ||
        /[\\\0]/.test(path)
      ) {
        throw malformed()
      }
      return [path, sha256]
    }),
  )
}

/** Creates a client without connecting. The default URL is OpenClaw's. `timeoutMs` limits a request with its answer. */
export function createClawHub(url: string | undefined, timeoutMs = defaultTimeoutMs): ClawHub {
  const base = (url ?? defaultRegistry).replace(/\/+$/, '')

  const apiUrl = (path: string, query: Record<string, string>) => {
    const url = new URL(`${base}/api/v1${path}`)
    for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value)
    return url
  }
  const request = (url: URL, init: RequestInit = {}) => send(url, { ...init, signal: AbortSignal.timeout(timeoutMs) })
  const skillUrl = ({ owner, slug }: SkillReference, subpath = '') =>
    apiUrl(`/skills/${encodeURIComponent(slug)}${subpath}`, { ownerHandle: owner })

  async function verdictItem(reference: SkillReference, version: string): Promise<Record<string, unknown>> {
    const query = { slug: reference.slug, ownerHandle: reference.owner, version }
    const answer = await request(apiUrl('/skills/-/security-verdicts', {}), {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ items: [query] }),
    })
    const { items } = parse(answer)
    const [item] = Array.isArray(items) ? items : []
    if (!isObject(item) || item.requestedSlug !== reference.slug || item.requestedVersion !== version) throw malformed()
    if (textOr(item.version, version) !== version) throw malformed() // a verdict on another version
    const publisher = textOr(item.publisherHandle, reference.owner).replace(/^@/, '').toLowerCase()
    if (publisher !== reference.owner) throw malformed() // a verdict on another publisher's skill
    return item
  }

  return {
    async search(query, limit) {
      const { results } = parse(await request(apiUrl('/search', { q: query, limit: String(limit) })))
      if (!Array.isArray(results)) throw malformed()
      return results.flatMap(toFoundSkill).slice(0, limit)
    },
    async release(reference, wanted) {
      const skill = referenceText(reference)
      const answer = await request(skillUrl(reference))
      if (answer.status === 404) throw new AppError('unknown_skill', `The registry has no skill ${skill}.`)
      if (isWithheld(answer)) throw withheld(skill, answer)
      const detail = parse(answer)
      const latest = isObject(detail.latestVersion) ? detail.latestVersion.version : undefined
      const version = wanted ?? latest
      if (!isVersion(version)) {
        throw new AppError('unknown_skill', `${skill} has no version in the registry that can be pinned.`)
      }
      const item = await verdictItem(reference, version)
      const code = isObject(item.error) ? item.error.code : undefined
      if (code === 'version_not_found' || code === 'skill_not_found') {
        throw new AppError('unknown_skill', `The registry has no version ${version} of ${skill}.`)
      }
      const verdict = verdictOf(item, detail)
      if (verdict.kind === 'refused') return { version, verdict, files: null }
      const published = await request(skillUrl(reference, `/versions/${encodeURIComponent(version)}`))
      if (isWithheld(published)) throw withheld(skill, published)
      const files = published.status === 404 ? null : filesIn(parse(published))
      return { version, verdict: files ? verdict : withoutFiles(verdict), files }
    },
  }
}

const withheld = (skill: string, { text }: RegistryAnswer) =>
  new AppError('skill_refused', `${skill} is not installed: the registry withholds it. It says: ${sentence(text)}`)
