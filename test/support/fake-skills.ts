import { hash } from 'node:crypto'
import { buffer } from 'node:stream/consumers'
import { isObject } from '#openclaw/json.ts'
import type { SandboxFiles } from '#sandbox/driver.ts'
import type { FakeClawHub } from './fake-clawhub.ts'
import { type FakeGateway, Refusal } from './fake-gateway.ts'

type Json = Record<string, unknown>

const workspace = '/sandbox/state/workspace'
const lockPath = 'state/workspace/.clawhub/lock.json'
const signal = new AbortController().signal
const unavailable = (message: string) => new Refusal({ code: 'UNAVAILABLE', message })

/**
 * Adds the methods `skills.status` and `skills.install` to a fake gateway, in shapes recorded from OpenClaw 2026.9.6.
 * An install writes into the files of the sandbox and is refused only for a malicious or missing verdict. A skill
 * without a name is not listed. The skill `weather` is part of the gateway.
 */
export function addFakeSkills(gateway: FakeGateway, hub: FakeClawHub, files: () => SandboxFiles): void {
  const readText = async (path: string) => {
    const file = await files().read(path, { maxBytes: 1_000_000 }, signal)
    return file && (await buffer(file.content())).toString()
  }
  const write = (path: string, text: string) => files().write(path, Buffer.from(text), {}, signal)
  const readLock = async (): Promise<Record<string, Json>> =>
    JSON.parse((await readText(lockPath)) ?? '{"skills":{}}').skills

  const statusOf = (name: string, required: string[], fields: Json): Json => {
    const skills = isObject(gateway.config.skills) ? gateway.config.skills : {}
    const entry = isObject(skills.entries) && isObject(skills.entries[name]) ? skills.entries[name] : {}
    const env = isObject(entry.env) ? entry.env : {}
    const missing = required.filter((variable, index) => !env[variable] && !(index === 0 && entry.apiKey))
    const disabled = entry.enabled === false
    return {
      name,
      skillKey: name,
      description: `The ${name} skill.`,
      source: 'openclaw-workspace',
      bundled: false,
      disabled,
      eligible: !disabled && missing.length === 0,
      missing: { bins: [], anyBins: [], env: missing, config: [], os: [] },
      ...fields,
    }
  }

  gateway.methods['skills.status'] = async () => {
    const lock = await readLock().catch(() => ({}) as Record<string, Json>)
    const folder = await files()
      .list('state/workspace/skills', { maxEntries: 100 }, signal)
      .catch(() => ({ entries: [] }))
    const inWorkspace = folder.entries.map(async ({ name: slug }) => {
      const text = (await readText(`state/workspace/skills/${slug}/SKILL.md`)) ?? ''
      const name = /^name: (.+)$/m.exec(text)?.[1]
      if (name === undefined) return []
      const env = JSON.parse(/"env":(\[[^\]]*\])/.exec(text)?.[1] ?? '[]') as string[]
      const locked = lock[slug]
      const origin = locked && { status: 'linked', valid: true, slug, ...locked, installedVersion: locked.version }
      return [statusOf(name, env, { baseDir: `${workspace}/skills/${slug}`, ...(origin && { clawhub: origin }) })]
    })
    const bundled = statusOf('weather', [], {
      source: 'openclaw-bundled',
      bundled: true,
      baseDir: '/release/skills/weather',
    })
    return { workspaceDir: workspace, skills: [bundled, ...(await Promise.all(inWorkspace)).flat()] }
  }

  gateway.methods['skills.install'] = async ({ slug: reference, version, force }) => {
    const [owner, slug] = String(reference).slice(1).split('/')
    const skill = hub.skills.find((other) => other.owner === owner && other.slug === slug)
    const release = skill?.versions.find((other) => other.version === version)
    if (!release) throw unavailable(`Skill "${slug}" not found on ClawHub.`)
    if (release.verdict === 'malicious') throw unavailable('ClawHub blocked this release; install was not started.')
    if (release.verdict === 'none')
      throw unavailable(`ClawHub release trust check failed for "${reference}@${version}"`)
    const folder = `state/workspace/skills/${slug}`
    if (!force && (await files().stat(folder, signal))) {
      throw unavailable(`Skill already exists at ${workspace}/skills/${slug}. Re-run with force/update.`)
    }
    await files().remove(folder, { recursive: true }, signal)
    const served = release.served ?? release.files
    for (const [path, text] of Object.entries(served)) await write(`${folder}/${path}`, text)
    const sha256 = hash('sha256', JSON.stringify(served), 'hex')
    const entry = { version, ownerHandle: owner, artifact: { kind: 'archive', sha256 } }
    await write(lockPath, JSON.stringify({ version: 1, skills: { ...(await readLock()), [String(slug)]: entry } }))
    const warning = release.verdict === 'clean' ? {} : { warning: 'Outcome: Review' }
    return { ok: true, message: `Installed ${slug}@${version}`, slug, version, ...warning }
  }
}
