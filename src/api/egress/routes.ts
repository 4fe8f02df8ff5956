import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { Db } from '#database/client.ts'
import { allowHost, readEgress } from '#egress/store.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import { getInstance } from '#instances/row.ts'
import { toMicroseconds } from '#platform/timestamps.ts'
import { AllowHost, InstanceEgress, type ShownHost } from './schemas.ts'

export interface EgressDeps {
  db: Db
}

/** The routes about hosts that agents reach, other than models. */
export const egressRoutes: FastifyPluginAsyncTypebox<EgressDeps> = async (app, { db }) => {
  async function show(organizationId: string, id: string) {
    const { policy, owner, hosts } = await readEgress(db, organizationId, id)
    return {
      egress: policy,
      egress_of: owner,
      hosts: hosts.map(({ allowWith, sentBytes, receivedBytes, firstSeenAt, lastSeenAt, ...host }) => ({
        ...host,
        reason: host.reason as ShownHost['reason'],
        bytes_sent: sentBytes,
        bytes_received: receivedBytes,
        first_seen_at: toMicroseconds(firstSeenAt),
        last_seen_at: toMicroseconds(lastSeenAt),
        allow_with: allowWith,
      })),
    }
  }

  app.get(
    '/v1/instances/:instance_id/egress',
    {
      config: { access: 'read' },
      schema: {
        operationId: 'getEgress',
        summary: 'List the hosts that an agent reaches',
        description:
          'The policy that holds for the agent, and the last hosts that it has asked for, allowed and blocked, with what ' +
          'would allow each. A host is listed some seconds after the agent asked for it, for 30 days.',
        tags: ['instances'],
        params: InstanceParams,
        response: { 200: InstanceEgress, ...failures(404) },
      },
    },
    async ({ caller, params }) => {
      const { organizationId, id } = await getInstance(db, caller.organizationId, params.instance_id)
      return show(organizationId, id)
    },
  )

  app.post(
    '/v1/instances/:instance_id/egress/allow',
    {
      config: { access: 'org', event: 'instance.update' },
      schema: {
        operationId: 'allowEgress',
        summary: 'Allow an agent a host',
        description:
          'Adds the host to `egress.hosts` of the instance. One without its own policy gets that of its organization ' +
          'with the host, and one with `none` an allow-list of this host. Holds within a second. An allow-list of the ' +
          'organization must have the host, and the address must be public, unless the operator allows it.',
        tags: ['instances'],
        params: InstanceParams,
        body: AllowHost,
        response: { 200: InstanceEgress, ...failures(400, 404, 409) },
      },
    },
    async ({ body, caller, params }) => {
      await allowHost(db, caller.organizationId, params.instance_id, body)
      return show(caller.organizationId, params.instance_id)
    },
  )
}
