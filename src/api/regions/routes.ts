import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { Db } from '#database/client.ts'
import { readRegionStates } from '#instances/region-states.ts'
import type { Regions } from '#instances/regions.ts'

const Region = Type.Object(
  {
    name: Type.String({ description: 'The name of the region: the `region` of an instance.' }),
    default: Type.Boolean({ description: 'Whether an instance is created here when its creator names no region.' }),
    engine: Type.String({ description: 'What runs the agents here: `local` processes of a host, or `docker`.' }),
    isolation: Type.String({
      description: 'How agents are isolated here from their host and from each other, and why they are not.',
    }),
    takes_new_instances: Type.Boolean({ description: 'Whether instances can be created here now.' }),
  },
  {
    $id: 'Region',
    examples: [
      {
        name: 'eu-1',
        default: true,
        engine: 'docker',
        isolation: 'Each agent runs in a container of its own.',
        takes_new_instances: true,
      },
    ],
  },
)

export interface RegionDeps {
  db: Db
  regions: Regions
}

/** The routes of regions. */
export const regionRoutes: FastifyPluginAsyncTypebox<RegionDeps> = async (app, { db, regions }) => {
  app.get(
    '/v1/regions',
    {
      config: { access: 'any' },
      schema: {
        operationId: 'listRegions',
        summary: 'List the regions',
        description: 'The values that `region` of a new instance can have, in the order of the operator.',
        tags: ['instances'],
        response: { 200: Type.Array(Region) },
      },
    },
    async () => {
      const states = await readRegionStates(db)
      return regions.all().map((region) => ({
        name: region.region,
        default: region === regions.default(),
        engine: region.sandboxes.name,
        isolation: region.sandboxes.isolation,
        takes_new_instances: (states.get(region.region) ?? 'open') === 'open',
      }))
    },
  )
}
