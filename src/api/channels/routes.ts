import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { clientLeft } from '#http/client-left.ts'
import { shownAs } from '#http/examples.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import type { CountRequest } from '#http/rate-limit.ts'
import { NoBody } from '#http/validation.ts'
import { Nullable } from '#platform/typebox.ts'
import { getChannelDefinition } from './catalogue.ts'
import { connectChannel } from './connect.ts'
import type { ChannelDeps } from './deps.ts'
import { disconnectChannel, logOutChannel } from './disconnect.ts'
import { approvePairing, listPairings } from './pairing.ts'
import { createQrLogins } from './qr-login.ts'
import {
  awaitingScan,
  Channel,
  ChannelConnection,
  ChannelInfo,
  ChannelPairing,
  ChannelStatus,
  ConnectChannel,
  PairChannel,
  PendingPairing,
  preparing,
  toChannelStatus,
  toConnection,
  toPendingPairing,
} from './schemas.ts'
import { getChannelStatus, listChannels, requireConnected } from './status.ts'

const ChannelParams = Type.Object({
  ...InstanceParams.properties,
  channel: Type.String({ description: 'telegram, discord, slack, whatsapp, and so on: see the list of channels.' }),
})

interface RouteDeps extends ChannelDeps {
  countPairing: CountRequest
}

/** The routes of channels: chat platforms through which people talk to the agent of an instance. */
export const channelRoutes: FastifyPluginAsyncTypebox<RouteDeps> = async (app, deps) => {
  const { askGateway } = deps
  const closing = new AbortController()
  app.addHook('preClose', async () => closing.abort())
  const startQrLogin = createQrLogins({ askGateway, log: app.log, signal: closing.signal })
  const path = '/v1/instances/:instance_id/channels/:channel'
  const common = { tags: ['channels'], params: ChannelParams }
  const config = { access: 'channels' } as const

  app.get(
    '/v1/instances/:instance_id/channels',
    {
      config,
      schema: {
        tags: ['channels'],
        operationId: 'listChannels',
        summary: 'List channels',
        description: 'All channels, and whether each is enabled on the instance. The instance need not run.',
        params: InstanceParams,
        response: { 200: Type.Array(Channel), ...failures(404) },
      },
    },
    async ({ caller, params }) =>
      (await listChannels(deps, caller.organizationId, params.instance_id)).map(
        ({ channel, connectionType, enabled }) => ({ channel, connection_type: connectionType, enabled }),
      ),
  )

  app.get(
    path,
    {
      config: { access: 'public' },
      schema: {
        ...common,
        operationId: 'getChannelInfo',
        summary: 'Describe a channel',
        description:
          'The kind of the connection, and the fields that `config` must have, for a setup screen. The answer is ' +
          'the same for every instance id, even for one that does not exist.',
        response: { 200: ChannelInfo, ...failures(404) },
      },
    },
    async ({ params: { channel } }) => {
      const { type, fields } = getChannelDefinition(channel)
      return {
        channel,
        connection_type: type,
        required_fields: Object.fromEntries(
          Object.entries(fields).map(([name, { description }]) => [name, description]),
        ),
      }
    },
  )

  app.get(
    `${path}/status`,
    {
      config,
      schema: {
        ...common,
        operationId: 'getChannelStatus',
        summary: 'Read the status of a channel',
        description:
          'Asks the gateway, which asks the platform. `details.step` is the step of a preparation, and ' +
          '`details.error` the reason of its failure. After a QR code was issued, `details.login` is the state of ' +
          'its scan. While the instance does not run, no channel is connected.',
        response: { 200: ChannelStatus, ...failures(404, 502, 504) },
      },
    },
    async ({ caller, params }) =>
      toChannelStatus(await getChannelStatus(deps, caller.organizationId, params.instance_id, params.channel)),
  )

  app.post(
    `${path}/connect`,
    {
      config: { ...config, event: 'channel.connect' },
      schema: {
        ...common,
        operationId: 'connectChannel',
        summary: 'Connect a channel',
        description:
          'Answers `connected` once the gateway reports that the channel is connected, `awaiting_scan` with a QR ' +
          'code for an interactive channel, and 202 with `preparing` when the preparation of its plugin takes ' +
          'longer than 60 s. When the platform refuses the credentials the answer is a 400, when it cannot be ' +
          'reached a 502; both quote the gateway, and nothing is stored. Without `config` the stored credentials ' +
          'are used, and a channel that does not run is started, without a restart of the instance. New people must be ' +
          'approved with the pair endpoint unless `dmPolicy` is set otherwise.',
        body: Nullable(ConnectChannel),
        response: {
          200: ChannelConnection,
          202: shownAs(ChannelConnection, preparing),
          ...failures(400, 404, 409, 502, 503, 504),
        },
      },
    },
    async ({ body, caller, params: { instance_id: id, channel } }, reply) => {
      const signal = AbortSignal.any([clientLeft(reply), closing.signal])
      const connection = await connectChannel({ ...deps, startQrLogin }, caller.organizationId, id, {
        channel,
        config: body?.config ?? {},
        signal,
      })
      return reply.code(connection.status === 'preparing' ? 202 : 200).send(toConnection(channel, connection))
    },
  )

  app.post(
    `${path}/qr`,
    {
      config: { ...config, event: null },
      schema: {
        ...common,
        operationId: 'getChannelQrCode',
        summary: 'Get a fresh QR code',
        description:
          'The current code of an interactive channel that waits for its scan. The code changes about every minute.',
        body: NoBody,
        response: { 200: shownAs(ChannelConnection, awaitingScan), ...failures(400, 404, 409, 502, 504) },
      },
    },
    async ({ caller, params: { instance_id: id, channel } }) => {
      if (getChannelDefinition(channel).type !== 'interactive')
        throw new AppError('unsupported_value', texts.notInteractive(channel))
      await requireConnected(deps, caller.organizationId, id, channel)
      return toConnection(channel, await startQrLogin(caller.organizationId, id, channel))
    },
  )

  app.post(
    `${path}/disconnect`,
    {
      config: { ...config, event: 'channel.disconnect' },
      schema: {
        ...common,
        operationId: 'disconnectChannel',
        summary: 'Disconnect a channel',
        description:
          'Disables the channel and keeps its credentials, so that connect needs none. An instance that does not ' +
          'run applies this at its next start.',
        body: NoBody,
        response: { 204: Type.Null(), ...failures(404, 409, 502, 504) },
      },
    },
    async ({ caller, params }, reply) => {
      await disconnectChannel(deps, caller.organizationId, params.instance_id, params.channel)
      return reply.code(204).send(null)
    },
  )

  app.post(
    `${path}/logout`,
    {
      config: { ...config, event: 'channel.logout' },
      schema: {
        ...common,
        operationId: 'logOutChannel',
        summary: 'Log out of a channel and delete its credentials',
        description:
          'Ends the session at the platform if the channel has one, for which the instance must run, and deletes ' +
          'everything that was stored for the channel. To use it again, connect it with credentials or a new QR ' +
          'code.',
        body: NoBody,
        response: { 204: Type.Null(), ...failures(404, 409, 502, 504) },
      },
    },
    async ({ caller, params }, reply) => {
      await logOutChannel(deps, caller.organizationId, params.instance_id, params.channel)
      return reply.code(204).send(null)
    },
  )

  app.post(
    `${path}/pair`,
    {
      config: { ...config, event: 'channel.pair' },
      schema: {
        ...common,
        operationId: 'pairChannel',
        summary: 'Approve a person by a pairing code',
        description:
          'Lets the person who received this code from the agent talk to it from now on. Takes several seconds. A ' +
          'code that no pending request has is a 400. At most 10 such calls a minute for an instance.',
        body: PairChannel,
        response: { 200: ChannelPairing, ...failures(400, 404, 409, 502, 504) },
      },
    },
    async (request, reply) => {
      const { code } = request.body
      const { instance_id: id, channel } = request.params
      const { organizationId } = request.caller
      await requireConnected(deps, organizationId, id, channel)
      await deps.countPairing(request, reply)
      const senderId = await approvePairing(deps, organizationId, id, { channel, code })
      return { channel, code, status: 'approved' as const, output: `Pairing approved for user ${senderId}.` }
    },
  )

  app.get(
    `${path}/pairings`,
    {
      config,
      schema: {
        ...common,
        operationId: 'listPendingPairings',
        summary: 'List people who wait for approval',
        description:
          'The people who wrote to the agent and received a code within the last hour. Only they know the codes.',
        response: { 200: Type.Array(PendingPairing), ...failures(404, 409, 502, 504) },
      },
    },
    async ({ caller, params: { instance_id: id, channel } }) => {
      await requireConnected(deps, caller.organizationId, id, channel)
      const requests = await askGateway(caller.organizationId, id, (gateway) => listPairings(gateway, channel))
      return requests.map(toPendingPairing)
    },
  )
}
