import { type Static, Type } from '@sinclair/typebox'
import { slugPattern, versionPattern } from '#openclaw/skills/skill-reference.ts'
import { Nullable, OneOf, textRule } from '#platform/typebox.ts'
import type { Installation } from './install.ts'
import type { InstanceSkill } from './list.ts'
import { masked } from './settings.ts'

const SkillName = Type.String({ description: 'The name under which the agent knows the skill.' })
const Ready = Type.Boolean({
  description: 'Installed, enabled, and all variables and programs that it needs are present.',
})
const Source = OneOf(
  ['clawhub', 'openclaw', 'workspace'],
  'Where it is from: the registry, OpenClaw, or files of the workspace.',
)
const Version = Nullable(
  Type.String({ description: 'The pinned version; null for a skill that did not come from the registry.' }),
)

const webSearch = {
  name: 'web-search',
  description: 'Search the web and return summarized results.',
  source: 'clawhub' as const,
  ready: true,
  version: '1.4.0',
}

export const SkillSummary = Type.Object(
  {
    name: SkillName,
    description: Type.String({ description: 'Empty while the instance does not run.' }),
    source: Source,
    ready: Ready,
    version: Version,
  },
  { $id: 'SkillSummary', examples: [webSearch] },
)

export const Skill = Type.Object(
  {
    ...SkillSummary.properties,
    path: Nullable(
      Type.String({
        description: 'Its folder in the workspace; null when it is elsewhere, or the instance does not run.',
      }),
    ),
    slug: Nullable(Type.String({ description: 'Its name in the registry, with its owner.' })),
    digest: Nullable(Type.String({ description: 'SHA-256, in hex, of the installed archive.' })),
    enabled: Type.Boolean({ description: 'Whether the agent may use the skill.' }),
    shell_env: Type.Array(Type.String(), {
      description: 'Variables of it that commands have in the shell of an agent with two rooms.',
    }),
    required_env: Type.Array(Type.String(), { description: 'Variables that it needs and that are not set.' }),
    required_programs: Type.Array(Type.String(), {
      description: 'Programs that it needs and that the sandbox does not have.',
    }),
  },
  {
    $id: 'Skill',
    examples: [
      {
        ...webSearch,
        path: '/skills/web-search',
        slug: '@acme/web-search',
        digest: '97f28db72f3df03b2849b0a1ba921983932e2740015ec812061a30e07f0b02c1',
        enabled: true,
        shell_env: [],
        required_env: [],
        required_programs: [],
      },
    ],
  },
)

const Value = Type.String({ maxLength: 16_384, ...textRule('^[^\\u0000]*$', 'must not have the character NUL') })
const Env = Type.Record(Type.String(), Value, {
  maxProperties: 64,
  description: 'Variables for the skill, by name. Their values are sealed, and no answer shows them.',
})
const WantedVersion = Type.Optional(
  Type.String({
    ...textRule(versionPattern, 'must be a version, such as 1.4.0'),
    maxLength: 64,
    description: 'The version to pin; the latest by default.',
  }),
)
const AllowUnverified = Type.Optional(
  Type.Boolean({
    description:
      'Also accept a version whose scan is pending, found it suspicious, or gave no verdict, and one whose files the ' +
      'registry does not list; false by default.',
  }),
)

export const InstallSkill = Type.Object(
  {
    slug: Type.String({
      ...textRule(slugPattern, 'must be @owner/slug, or a slug alone, in lower case, such as @acme/web-search'),
      maxLength: 142,
      description: '`@owner/slug`, or the slug alone if only one skill of the registry has it.',
    }),
    version: WantedVersion,
    env: Type.Optional(Env),
    allow_unverified: AllowUnverified,
  },
  {
    additionalProperties: false,
    examples: [{ slug: '@acme/web-search', env: { SEARCH_API_KEY: 'sk-…' } }],
  },
)

export const UpdateSkill = Type.Object(
  { version: WantedVersion, allow_unverified: AllowUnverified },
  { additionalProperties: false, examples: [{ version: '1.5.0' }] },
)

const shellEnv =
  'The names of those of its variables that commands have in the shell of an agent with two rooms, where whoever talks ' +
  'to the agent can have it print them. Replaces the list. With one room commands have all variables.'

export const ConfigureSkill = Type.Object(
  {
    enabled: Type.Optional(Type.Boolean({ description: 'false disables the skill without uninstalling it.' })),
    apiKey: Type.Optional(
      Nullable(
        Type.String({
          ...Value,
          minLength: 1,
          description: 'The value of the variable that the skill declares as its key.',
        }),
      ),
    ),
    env: Type.Optional(
      Type.Record(Type.String(), Nullable(Value), {
        maxProperties: 64,
        description: 'Merged with the variables that are set; null removes a variable.',
      }),
    ),
    config: Type.Optional(
      Type.Record(Type.String(), Type.Unknown(), {
        description: 'The skill’s own settings, merged key by key; null removes a key.',
      }),
    ),
    shell_env: Type.Optional(
      Type.Array(Type.String({ maxLength: 128 }), { maxItems: 64, uniqueItems: true, description: shellEnv }),
    ),
  },
  {
    additionalProperties: false,
    examples: [{ enabled: true, env: { SEARCH_API_KEY: 'sk-…' }, config: { max_results: 5 } }],
  },
)

export const InstalledSkill = Type.Object(
  {
    skill: SkillName,
    status: OneOf(
      ['installed', 'installed_missing_env'],
      '`installed_missing_env`: it needs environment variables before the agent can use it.',
    ),
    version: Type.String({ description: 'The installed version.' }),
    output: Type.String({ description: 'The output of the installer.' }),
    env_applied: Type.Optional(
      Type.Record(Type.String(), Type.String(), { description: 'The variables that were set, with masked values.' }),
    ),
    required_env: Type.Optional(
      Type.Array(Type.String(), { description: 'Variables that it needs and that are not set.' }),
    ),
    message: Type.String({ description: 'The outcome, and what is still to do.' }),
  },
  {
    $id: 'InstalledSkill',
    examples: [
      {
        skill: 'web-search',
        status: 'installed_missing_env',
        version: '1.4.0',
        output: 'Installed web-search@1.4.0',
        required_env: ['SEARCH_API_KEY'],
        message: 'Skill installed. To use it, set SEARCH_API_KEY.',
      },
    ],
  },
)

export const FoundSkill = Type.Object(
  {
    slug: Type.String({ description: 'The slug to install it by.' }),
    name: Type.String({ description: 'The name of the skill for people.' }),
    description: Type.String({ description: 'What the skill is for.' }),
    version: Nullable(Type.String({ description: 'The latest version; null if the registry does not report it.' })),
  },
  {
    $id: 'FoundSkill',
    examples: [
      {
        slug: '@acme/web-search',
        name: 'Web Search',
        description: 'Search the web and return summarized results.',
        version: '1.4.0',
      },
    ],
  },
)

export const toSummary = ({ name, reported, stored }: InstanceSkill): Static<typeof SkillSummary> => ({
  name,
  description: reported?.description ?? '',
  source: stored?.slug ? 'clawhub' : (reported?.source ?? 'openclaw'),
  ready: reported?.ready ?? false,
  version: stored?.version ?? reported?.installed?.version ?? null,
})

export const toSkill = (skill: InstanceSkill): Static<typeof Skill> => ({
  ...toSummary(skill),
  path: skill.reported?.path ?? null,
  slug: skill.stored?.slug ?? null,
  digest: skill.stored?.digest ?? null,
  enabled: skill.enabled,
  shell_env: skill.shellEnv,
  required_env: skill.reported?.missing.env ?? [],
  required_programs: skill.reported?.missing.bins ?? [],
})

function messageOf(requiredEnv: readonly string[], programs: readonly string[]): string {
  const needs = [
    ...(requiredEnv.length > 0 ? [`To use it, set ${requiredEnv.join(', ')}.`] : []),
    ...(programs.length > 0 ? [`It needs programs that the sandbox does not have: ${programs.join(', ')}.`] : []),
  ]
  return needs.length > 0 ? `Skill installed. ${needs.join(' ')}` : 'Skill installed and ready to use.'
}

/** `env` holds the variables that were set after the installation. */
export function toInstalledSkill(
  { skill, version, output }: Installation,
  env: Record<string, string> = {},
): Static<typeof InstalledSkill> {
  const names = Object.keys(env)
  const requiredEnv = skill.missing.env.filter((name) => !env[name])
  return {
    skill: skill.key,
    status: requiredEnv.length > 0 ? 'installed_missing_env' : 'installed',
    version,
    output,
    ...(names.length > 0 && { env_applied: Object.fromEntries(names.map((name) => [name, masked(env[name] ?? '')])) }),
    ...(requiredEnv.length > 0 && { required_env: requiredEnv }),
    message: messageOf(requiredEnv, skill.missing.bins),
  }
}
