import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import { pluginChannels } from '#openclaw/channel-plugins.ts'
import { defaultRelease, knownReleases, openclawVersion } from '#openclaw/releases.ts'

const Release = Type.Object(
  {
    openclaw_version: Type.String({ description: 'The name of the release: the `openclaw_version` of an instance.' }),
    version: Type.String({ description: 'The version of OpenClaw that the release installs.' }),
    default: Type.Boolean({ description: 'Whether an instance gets this release when its creator selects none.' }),
    plugin_channels: Type.Array(Type.String(), {
      description:
        'The channels that need a plugin of their own. The first connection of one may install it, which takes a ' +
        'minute. OpenClaw includes the other channels.',
    }),
  },
  {
    $id: 'Release',
    examples: [{ openclaw_version: 'v1', version: '2026.9.6', default: true, plugin_channels: ['whatsapp'] }],
  },
)

/** The releases of OpenClaw that this server can install. */
export const releaseRoutes: FastifyPluginAsyncTypebox = async (app) => {
  app.get(
    '/v1/releases',
    {
      config: { access: 'any' },
      schema: {
        operationId: 'listReleases',
        summary: 'List the releases of OpenClaw',
        description: 'The values that `openclaw_version` of a new instance can have, sorted by name.',
        tags: ['instances'],
        response: { 200: Type.Array(Release) },
      },
    },
    async () =>
      knownReleases().map((release) => ({
        openclaw_version: release,
        version: openclawVersion(release),
        default: release === defaultRelease,
        plugin_channels: pluginChannels(release),
      })),
  )
}
