import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import { clientLeft } from '#http/client-left.ts'
import { failures } from '#http/openapi.ts'
import { NoBody, Nullable } from '#http/validation.ts'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'
import { channelEntry } from './catalogue.ts'
import { type ConnectDeps, connectChannel, disconnectChannel, logOutChannel } from './connect.ts'
import { startLogin, waitForScan } from './login.ts'
import { approvePairing, listPairings } from './pairing.ts'
import {
  Channel,
  ChannelConnection,
  ChannelInfo,
  ChannelPairing,
  ChannelStatus,
  ConnectChannel,
  PairChannel,
  PendingPairing,
  toChannelStatus,
  toConnection,
  toPendingPairing,
} from './schemas.ts'
import { listChannels, requireConnected, seeChannel } from './status.ts'

export type ChannelDeps = ConnectDeps

const OfInstance = Type.Object({ instance_id: Type.String() })
const OfChannel = Type.Object({
  instance_id: Type.String(),
  channel: Type.String({ description: 'telegram, discord, slack, whatsapp, and so on: see the list of channels.' }),
})

/** A QR code is good for three minutes. */
const followRounds = 18
const followRoundMs = 10_000

/** Chat platforms that are bridged to an instance's agent. */
export const channelRoutes: FastifyPluginAsyncTypebox<ChannelDeps> = async (app, deps) => {
  const { askGateway } = deps
  const closing = new AbortController()
  app.addHook('preClose', async () => closing.abort())
  const path = '/v1/instances/:instance_id/channels/:channel'
  const common = { tags: ['channels'], params: OfChannel }
  const config = { access: 'channels' } as const

  /** Stays with a login, so that the channel starts after the scan although nobody asks for its status. */
  const followed = new Set<string>()
  async function followLogin(organizationId: string, id: string, channel: string): Promise<void> {
    const name = `${id}/${channel}`
    if (followed.has(name)) return
    followed.add(name)
    try {
      for (let round = 0; round < followRounds && !closing.signal.aborted; round += 1) {
        const { state } = await askGateway(organizationId, id, (gateway) =>
          waitForScan(gateway, channel, followRoundMs),
        )
        if (state !== 'awaiting_scan') return
      }
    } catch (error) {
      app.log.warn({ err: error, instanceId: id, channel }, 'a login is not followed any more')
    } finally {
      followed.delete(name)
    }
  }

  app.get(
    '/v1/instances/:instance_id/channels',
    {
      config,
      schema: {
        tags: ['channels'],
        operationId: 'listChannels',
        summary: 'List channels',
        description:
          'Every channel there is, and whether the instance has it switched on. Works for a stopped instance.',
        params: OfInstance,
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
        summary: 'Show what a channel needs',
        description:
          'How the channel is connected and the fields that `config` must hold, for a setup screen. The answer is the same for every instance id, also for one that does not exist.',
        response: { 200: ChannelInfo, ...failures(404) },
      },
    },
    async ({ params: { channel } }) => {
      const { type, fields } = channelEntry(channel)
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
        summary: 'Show how a channel is',
        description:
          'Asks the gateway, and lets the gateway ask the platform. While a plugin is prepared `details.step` says what is being done, and `details.error` why it failed; after a QR code `details.login` follows the scan to its end. On an instance that does not run no channel is connected.',
        response: { 200: ChannelStatus, ...failures(404, 502, 504) },
      },
    },
    async ({ caller, params }) =>
      toChannelStatus(await seeChannel(deps, caller.organizationId, params.instance_id, params.channel)),
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
          'Answers `connected` once the gateway says that the channel is up, `awaiting_scan` with a QR code for an interactive channel, and 202 with `preparing` when its plugin takes longer than 60 s to prepare. Credentials that the platform refuses are a 400, a platform that is not reached is a 502, both with the gateway’s words and nothing stored. Without `config` the stored credentials are used. Strangers must be approved with the pair endpoint unless `dmPolicy` says otherwise.',
        body: Nullable(ConnectChannel),
        response: { 200: ChannelConnection, 202: ChannelConnection, ...failures(400, 404, 409, 502, 503, 504) },
      },
    },
    async ({ body, caller, params: { instance_id: id, channel } }, reply) => {
      const left = AbortSignal.any([clientLeft(reply), closing.signal])
      const given = body?.config ?? {}
      const connection = await connectChannel(deps, caller.organizationId, id, { channel, given, left })
      if (connection.status === 'awaiting_scan') void followLogin(caller.organizationId, id, channel)
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
          'The newest code of an interactive channel that waits for its scan: codes change every minute or so.',
        body: NoBody,
        response: { 200: ChannelConnection, ...failures(400, 404, 409, 502, 504) },
      },
    },
    async ({ caller, params: { instance_id: id, channel } }) => {
      if (channelEntry(channel).type !== 'interactive') throw new AppError('invalid', texts.notInteractive(channel))
      await requireConnected(deps, caller.organizationId, id, channel)
      const login = await askGateway(caller.organizationId, id, (gateway) => startLogin(gateway, channel))
      if (login.status === 'awaiting_scan') void followLogin(caller.organizationId, id, channel)
      return toConnection(channel, login)
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
          'Switches the channel off and keeps its credentials, so that connect works without them. On an instance that does not run it holds from the next start.',
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
        summary: 'Log out of a channel and forget its credentials',
        description:
          'Ends the session at the platform where there is one, which needs a running instance, and erases what was stored for the channel. To use it again, connect it with credentials or a new QR code.',
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
        summary: 'Approve a person by their pairing code',
        description:
          'Lets a person who wrote to the agent, and was sent this code, talk to it from now on. Takes several seconds. A code that nobody waits with is a 400.',
        body: PairChannel,
        response: { 200: ChannelPairing, ...failures(400, 404, 409, 502, 504) },
      },
    },
    async ({ body: { code }, caller, params: { instance_id: instanceId, channel } }) => {
      const id = await requireConnected(deps, caller.organizationId, instanceId, channel)
      const senderId = await approvePairing(deps, caller.organizationId, id, { channel, code })
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
        description: 'Who wrote to the agent and was sent a code within the last hour. The codes are theirs to tell.',
        response: { 200: Type.Array(PendingPairing), ...failures(404, 409, 502, 504) },
      },
    },
    async ({ caller, params: { instance_id: id, channel } }) => {
      await requireConnected(deps, caller.organizationId, id, channel)
      const pending = await askGateway(caller.organizationId, id, (gateway) => listPairings(gateway, channel))
      return pending.map(toPendingPairing)
    },
  )
}
