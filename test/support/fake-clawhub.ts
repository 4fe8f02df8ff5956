import { createHash } from 'node:crypto'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { crc32 } from 'node:zlib'
import { listenLocally } from './local-server.ts'

type Json = Record<string, unknown>

/** The result of a scan, or of a moderator, for a version. For `none` the registry answers without a verdict. */
export type FakeVerdict = 'clean' | 'suspicious' | 'malicious' | 'pending' | 'held' | 'quarantined' | 'revoked' | 'none'

export interface FakeVersion {
  version: string
  files: Record<string, string>
  verdict: FakeVerdict
  /** The files of the download, when they differ from the published files. */
  served?: Record<string, string>
}

export interface FakeSkill {
  owner: string
  slug: string
  summary?: string
  /** The latest version is the last. */
  versions: FakeVersion[]
}

export interface FakeClawHub {
  url: string
  skills: FakeSkill[]
  /** The method, path and query of each request. */
  requests: string[]
  /** Returns true when it has answered in place of the registry. */
  intercept: ((request: IncomingMessage, response: ServerResponse) => boolean) | null
  publish(skill: Omit<FakeSkill, 'versions'>, version: FakeVersion): void
  close(): Promise<void>
}

/** The text of a SKILL.md; `env` holds the variables that the skill needs. */
export function skillMd(
  name: string,
  { env = [], body = 'Say hello.' }: { env?: string[]; body?: string } = {},
): string {
  const metadata = JSON.stringify({ openclaw: { requires: { env }, ...(env[0] && { primaryEnv: env[0] }) } })
  return `---\nname: ${name}\ndescription: The ${name} skill.\nmetadata: ${metadata}\n---\n${body}\n`
}

const sha256 = (text: string) => createHash('sha256').update(text).digest('hex')

/** A ZIP archive without compression. */
function zip(files: Record<string, string>): Buffer {
  const locals: Buffer[] = []
  const directory: Buffer[] = []
  let offset = 0
  for (const [path, text] of Object.entries(files)) {
    const [name, content] = [Buffer.from(path), Buffer.from(text)]
    const sizes = Buffer.alloc(16)
    sizes.writeUInt32LE(crc32(content), 0)
    sizes.writeUInt32LE(content.length, 4)
    sizes.writeUInt32LE(content.length, 8)
    sizes.writeUInt16LE(name.length, 12)
    const local = Buffer.concat([Buffer.from('504b030414000000000000000000', 'hex'), sizes, name, content])
    const attributes = Buffer.alloc(14)
    attributes.writeUInt32LE(offset, 10)
    directory.push(Buffer.concat([Buffer.from('504b0102140014000000000000000000', 'hex'), sizes, attributes, name]))
    locals.push(local)
    offset += local.length
  }
  const central = Buffer.concat(directory)
  const end = Buffer.alloc(22)
  end.writeUInt32LE(0x06054b50, 0)
  end.writeUInt16LE(directory.length, 8)
  end.writeUInt16LE(directory.length, 10)
  end.writeUInt32LE(central.length, 12)
  end.writeUInt32LE(offset, 16)
  return Buffer.concat([...locals, central, end])
}

const send = (response: ServerResponse, status: number, body: unknown) =>
  typeof body === 'string'
    ? response.writeHead(status, { 'content-type': 'text/plain; charset=utf-8' }).end(body)
    : response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body))

/** A stand-in for the registry of skills: the part of ClawHub's API v1 that OpenClaw uses. */
export async function startFakeClawHub(): Promise<FakeClawHub> {
  const hub: FakeClawHub = {
    url: '',
    skills: [],
    requests: [],
    intercept: null,
    publish(skill, version) {
      const known = hub.skills.find(({ owner, slug }) => owner === skill.owner && slug === skill.slug)
      if (known) known.versions.push(version)
      else hub.skills.push({ ...skill, versions: [version] })
    },
    close: () => local.close(),
  }
  const server = createServer((request, response) => {
    hub.requests.push(`${request.method} ${request.url}`)
    if (hub.intercept?.(request, response)) return
    answer(hub, request, response).catch((error: unknown) => send(response, 500, String(error)))
  })
  const local = await listenLocally(server)
  hub.url = local.url
  return hub
}

async function answer(hub: FakeClawHub, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const { pathname, searchParams } = new URL(request.url ?? '/', hub.url)
  if (pathname === '/api/v1/search')
    return void send(response, 200, { results: search(hub, searchParams.get('q') ?? '') })
  if (pathname === '/api/v1/skills/-/security-verdicts') {
    const chunks = await request.toArray()
    const { items } = JSON.parse(Buffer.concat(chunks).toString()) as { items: Record<string, string>[] }
    return void send(response, 200, {
      schema: 'clawhub.skill.security-verdicts.v1',
      items: items.map((item) => verdictOn(hub, item)),
    })
  }
  const [slug = '', action, third] = pathname.startsWith('/api/v1/skills/')
    ? pathname.slice('/api/v1/skills/'.length).split('/').map(decodeURIComponent)
    : [searchParams.get('slug') ?? '', pathname === '/api/v1/download' ? 'download' : 'unknown']
  const [skill, second] = findSkills(hub, slug, searchParams.get('ownerHandle'))
  if (!skill) return void send(response, 404, 'Skill not found')
  if (second) return void send(response, 409, `AMBIGUOUS_SKILL_SLUG: ${slug}`)
  const requested = third ?? searchParams.get('version')
  const version =
    requested === null ? skill.versions.at(-1) : skill.versions.find((other) => other.version === requested)
  if (!version) return void send(response, 404, 'Version not found')
  if (action !== undefined && version.verdict === 'revoked') return void send(response, 410, 'Version not available')
  switch (action) {
    case undefined:
      return void send(response, 200, detail(skill, version))
    case 'install':
      return void send(response, 200, {
        ok: true,
        slug,
        installKind: 'archive',
        archive: {
          version: version.version,
          downloadUrl: `${hub.url}/api/v1/download?slug=${slug}&ownerHandle=${skill.owner}&version=${version.version}`,
        },
      })
    case 'versions':
      if (version.verdict === 'malicious') return void send(response, 403, 'This version was blocked as malware.')
      return void send(response, 200, {
        skill: { slug, displayName: slug },
        version: { version: version.version, createdAt: 0, changelog: '', files: filesOf(version) },
      })
    case 'verify':
      return void send(response, 200, {
        ...verdictOn(hub, { slug, ownerHandle: skill.owner, version: version.version }),
        schema: 'clawhub.skill.verify.v1',
        skill: null,
        publisher: null,
        card: null,
        artifact: { sourceFingerprint: null, bundleFingerprints: [], files: filesOf(version) },
        provenance: { source: 'unavailable' },
        signature: { status: 'unsigned' },
      })
    case 'download':
      response.writeHead(200, { 'content-type': 'application/zip' }).end(zip(version.served ?? version.files))
      return
    default:
      return void send(response, 404, 'Not found')
  }
}

const findSkills = (hub: FakeClawHub, slug: string, owner: string | null | undefined) =>
  hub.skills.filter((skill) => skill.slug === slug && (!owner || skill.owner === owner))

const filesOf = ({ files }: FakeVersion) =>
  Object.entries(files).map(([path, text]) => ({ path, size: Buffer.byteLength(text), sha256: sha256(text) }))

const search = (hub: FakeClawHub, query: string): Json[] =>
  hub.skills
    .filter(({ slug, summary }) => slug.includes(query) || summary?.includes(query))
    .map(({ owner, slug, summary, versions }) => ({
      score: 1,
      slug,
      displayName: slug,
      summary: summary ?? null,
      version: versions.at(-1)?.version,
      updatedAt: 0,
      ownerHandle: owner,
      source: 'clawhub',
      install: { kind: 'clawhub', reference: `@${owner}/${slug}` },
    }))

const detail = ({ owner, slug, summary, versions }: FakeSkill, latest: FakeVersion): Json => ({
  skill: { slug, displayName: slug, summary: summary ?? null, tags: {}, stats: {}, createdAt: 0, updatedAt: 0 },
  latestVersion: { version: versions.at(-1)?.version, createdAt: 0, changelog: '' },
  metadata: null,
  owner: { handle: owner, displayName: owner, image: null },
  moderation:
    latest.verdict === 'clean'
      ? null
      : {
          isSuspicious: latest.verdict === 'suspicious',
          isMalwareBlocked: latest.verdict === 'malicious',
          verdict: latest.verdict === 'malicious' || latest.verdict === 'suspicious' ? latest.verdict : 'clean',
          reasonCodes: [],
        },
})

/** The reasons for which a version does not pass: codes of ClawHub's scans and states of its moderation. */
const reasons: Record<Exclude<FakeVerdict, 'none' | 'revoked'>, string[]> = {
  clean: [],
  suspicious: ['security.status_not_clean'],
  malicious: ['moderation.malware_blocked', 'security.status_not_clean'],
  pending: ['security.status_not_clean', 'security.pending'],
  held: ['moderation.held'],
  quarantined: ['moderation.quarantined'],
}

function verdictOn(hub: FakeClawHub, { slug = '', ownerHandle, version = '' }: Record<string, string>): Json {
  const requested = {
    requestedSlug: slug,
    ...(ownerHandle && { requestedOwnerHandle: ownerHandle }),
    requestedVersion: version,
  }
  const [skill] = findSkills(hub, slug, ownerHandle)
  const verdict = skill?.versions.find((other) => other.version === version)?.verdict
  if (!skill || verdict === undefined || verdict === 'revoked' || verdict === 'none') {
    const code =
      verdict === 'revoked' ? 'version_unavailable' : verdict === 'none' ? 'scan_missing' : 'version_not_found'
    return {
      ok: false,
      decision: 'fail',
      reasons: [code.replace('_', '.')],
      ...requested,
      slug,
      version: null,
      publisherHandle: null,
      security: null,
      error: { code, message: 'There is no verdict on this version.' },
    }
  }
  const passed = verdict === 'clean'
  return {
    ok: passed,
    decision: passed ? 'pass' : 'fail',
    reasons: reasons[verdict],
    ...requested,
    slug,
    displayName: slug,
    publisherHandle: skill.owner,
    publisherDisplayName: skill.owner,
    version,
    createdAt: 0,
    checkedAt: 0,
    skillUrl: `${hub.url}/${skill.owner}/skills/${slug}`,
    securityAuditUrl: `${hub.url}/${skill.owner}/skills/${slug}/security-audit?version=${version}`,
    overview: `The scan of ${slug} says ${verdict}.`,
    security: { status: ['held', 'quarantined'].includes(verdict) ? 'clean' : verdict, passed, signals: {} },
  }
}
