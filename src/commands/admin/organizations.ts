import { deleteOrganization } from '#api/organization/delete.ts'
import {
  findOrganization,
  listOrganizations,
  setLimit,
  setMaxResources,
  setSuspended,
  setTier,
} from '#api/organization/operator.ts'
import { findSignupToken, renewSignupToken } from '#api/organization/signup-token.ts'
import { signUp } from '#api/organization/store.ts'
import { type Organization, type Tier, tiers } from '#database/schema.ts'
import { toMicroseconds } from '#platform/timestamps.ts'
import { parseResources, resourcesRule, usualMaxima } from '#settings/resources.ts'
import { type Command, type Output, shortTime, table } from './command.ts'

const maxNameLength = 255
const maxLimit = 1_000_000

const toData = (row: Organization) => ({
  id: row.id,
  name: row.name,
  tier: row.subscriptionTier,
  instance_count: row.instanceCount,
  instance_limit: row.instanceLimit,
  max_resources: row.maxResources,
  suspended: row.suspendedAt !== null,
  created_at: toMicroseconds(row.createdAt),
})

const headings = ['ID', 'NAME', 'TIER', 'INSTANCES', 'STATE', 'CREATED'] as const

const toLine = (row: Organization): string[] => [
  row.id,
  row.name,
  row.subscriptionTier,
  `${row.instanceCount}/${row.instanceLimit ?? '∞'}`,
  row.suspendedAt ? 'suspended' : 'active',
  shortTime(row.createdAt),
]

const show = (row: Organization): Output => ({ text: table(headings, [toLine(row)]), data: toData(row) })

function readTier(text: string): Tier {
  const tier = tiers.find((known) => known === text)
  if (!tier) throw new Error(`There is no tier ${JSON.stringify(text)}. Use one of: ${tiers.join(', ')}.`)
  return tier
}

function readLimit(text: string): number | null {
  if (text === 'none') return null
  if (/^\d+$/.test(text) && Number(text) <= maxLimit) return Number(text)
  throw new Error(`A limit is a number from 0 to ${maxLimit}, or none. ${JSON.stringify(text)} is neither.`)
}

export const organizationCommands: Readonly<Record<string, Command>> = {
  'create-org': {
    parameters: ['<name>'],
    summary: 'creates an organization, and prints its first key once',
    options: ['tier'],
    event: 'organization.create',
    async run({ db, isOneOrganization, defaultTier, words: [name = ''], options: { tier = defaultTier } }) {
      if (name.trim() === '' || name.length > maxNameLength) {
        throw new Error(`The name of an organization has 1 to ${maxNameLength} characters.`)
      }
      const { organization, key } = await signUp(db, name, readTier(tier), { isOnly: await isOneOrganization() })
      const text = `${show(organization).text}\n\nIts API key, which is not shown again:\n${key}`
      return { text, data: { ...toData(organization), api_key: key } }
    },
  },
  'signup-token': {
    parameters: [],
    summary: 'prints the token that sign-up takes with SIGNUP=token; --new makes another, and ends the one before',
    options: ['new'],
    async run({ db, vault, options }) {
      const token = await (options.new ? renewSignupToken : findSignupToken)(db, await vault())
      return { text: token, data: { signup_token: token } }
    },
  },
  'list-orgs': {
    parameters: [],
    summary: 'every organization: its tier, its instances and their limit, its state',
    async run({ db }) {
      const rows = await listOrganizations(db)
      const text = rows.length > 0 ? table(headings, rows.map(toLine)) : 'There is no organization yet.'
      return { text, data: rows.map(toData) }
    },
  },
  'set-tier': {
    parameters: ['<org>', '<tier>'],
    summary: `gives a tier and its limit of instances: ${tiers.join(', ')}`,
    async run({ db, words: [org = '', tier = ''] }) {
      const wanted = readTier(tier)
      return show(await setTier(db, (await findOrganization(db, org)).id, wanted))
    },
  },
  'set-limit': {
    parameters: ['<org>', '<number|none>'],
    summary: 'sets how many instances it may have; it stands until its tier changes',
    async run({ db, words: [org = '', limit = ''] }) {
      const wanted = readLimit(limit)
      return show(await setLimit(db, (await findOrganization(db, org)).id, wanted))
    },
  },
  'set-max-resources': {
    parameters: ['<org>', '<resources|none>'],
    summary:
      'sets the most that its agents may use, such as memory_mb=16384,cpus=4; none is four times AGENT_RESOURCES',
    async run({ db, words: [org = '', text = ''] }) {
      const wanted = text === 'none' ? {} : parseResources(text)
      if (!wanted) throw new Error(`${JSON.stringify(text)} ${resourcesRule(usualMaxima)}; or be none.`)
      return show(await setMaxResources(db, (await findOrganization(db, org)).id, wanted))
    },
  },
  'suspend-org': {
    parameters: ['<org>'],
    summary: 'its keys are refused within a second, and its agents are stopped within seconds',
    run: async ({ db, words: [org = ''] }) => show(await setSuspended(db, (await findOrganization(db, org)).id, true)),
  },
  'resume-org': {
    parameters: ['<org>'],
    summary: 'ends its suspension: its keys work again, and the agents that ran are started',
    run: async ({ db, words: [org = ''] }) => show(await setSuspended(db, (await findOrganization(db, org)).id, false)),
  },
  'delete-org': {
    parameters: ['<org>'],
    summary: 'deletes it with all its data and agents, for good; asks for its name, unless --yes',
    options: ['yes'],
    async run({ db, words: [org = ''], options, ask }) {
      const { id, name, instanceCount } = await findOrganization(db, org)
      if (!options.yes) {
        const question = `This deletes ${name} (${id}) with ${instanceCount} instances, for good. Type its name: `
        const answer = await ask(question)
        if (answer === null) throw new Error(`This deletes ${name} for good. Add --yes to do it without a question.`)
        if (answer !== name) throw new Error('That is another name. Nothing was deleted.')
      }
      const { terminated, keyHashes, secrets } = await deleteOrganization(db, id)
      const data = { id, name, keys: keyHashes.length, secrets, instances: terminated }
      const erased = `Erased keys: ${data.keys}, erased secrets: ${data.secrets}`
      const text = `${name} (${id}) is deleted. ${erased}, agents that a worker destroys: ${data.instances}.`
      return { text, data }
    },
  },
}
