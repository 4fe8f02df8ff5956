import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import { advisoriesOf, refusalOf } from '#openclaw/release/advisories.ts'
import { pluginChannels } from '#openclaw/release/channel-plugins.ts'
import { defaultRelease, knownReleases, openclawVersion } from '#openclaw/releases.ts'
import { OneOf } from '#platform/typebox.ts'

const Release = Type.Object(
  {
    openclaw_version: Type.String({ description: 'The name of the release: the `openclaw_version` of an instance.' }),
    version: Type.String({ description: 'The version of OpenClaw that the release installs.' }),
    default: Type.Boolean({ description: 'Whether an instance gets this release when its creator selects none.' }),
    refused: Type.Boolean({
      description: 'Whether this server starts no agent of the release, because its OpenClaw is too old.',
    }),
    advisories: Type.Array(
      Type.Object({
        id: Type.String({ description: 'The number of the CVE or of the GitHub advisory.' }),
        fixed_in: Type.String({ description: 'The first version of OpenClaw without it.' }),
        severity: OneOf(['low', 'medium', 'high', 'critical'], 'How bad it is, as published.'),
        summary: Type.String({ description: 'What it lets an attacker do.' }),
        source: Type.String({ description: 'Where it was published.' }),
      }),
      { description: 'The vulnerabilities of this version that Chowder knows of.' },
    ),
    plugin_channels: Type.Array(Type.String(), {
      description:
        'The channels that need a plugin of their own. The first connection of one may install it, which takes a ' +
        'minute. OpenClaw includes the other channels.',
    }),
  },
  {
    $id: 'Release',
    examples: [
      {
        openclaw_version: 'v1',
        version: '2026.9.6',
        default: true,
        refused: false,
        advisories: [],
        plugin_channels: ['whatsapp'],
      },
    ],
  },
)

export interface ReleaseDeps {
  /** The oldest version of OpenClaw that agents may start with. */
  minOpenclawVersion: string
}

/** The releases of OpenClaw that this server can install. */
export const releaseRoutes: FastifyPluginAsyncTypebox<ReleaseDeps> = async (app, { minOpenclawVersion }) => {
  app.get(
    '/v1/releases',
    {
      config: { access: 'any' },
      schema: {
        operationId: 'listReleases',
        summary: 'List the releases of OpenClaw',
        description:
          'The values that `openclaw_version` of a new instance can have, sorted by name, with the known vulnerabilities ' +
          'of each. No agent of a release that is `refused` is created or started.',
        tags: ['instances'],
        response: { 200: Type.Array(Release) },
      },
    },
    async () =>
      knownReleases().map((release) => ({
        openclaw_version: release,
        version: openclawVersion(release),
        default: release === defaultRelease,
        refused: refusalOf(release, minOpenclawVersion) !== null,
        advisories: advisoriesOf(release),
        plugin_channels: pluginChannels(release),
      })),
  )
}
