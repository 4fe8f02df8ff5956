import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { type Static, Type } from '@sinclair/typebox'
import type { FastifyReply } from 'fastify'
import type { Db } from '#database/client.ts'
import { readDatabaseMs } from '#database/clock.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { idempotent } from '#http/idempotency.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import { PageQuery, positionOf, sendPage } from '#http/paging.ts'
import { isWithin } from '#http/session-scope.ts'
import type { FindSummary } from '#instances/find.ts'
import { isId } from '#platform/ids.ts'
import type { Vault } from '#platform/secrets.ts'
import { toSeconds } from '#platform/timestamps.ts'
import { Uuid } from '#platform/typebox.ts'
import type { Callers } from './callers.ts'
import { sealClientToken } from './client-tokens.ts'
import {
  ClientToken,
  CreateClientToken,
  CreateKey,
  CreateOrganizationKey,
  CurrentKey,
  Key,
  type KeyLimits,
  KeyWithGrants,
  maxTokenSeconds,
  NewKey,
  PatchKey,
  toCurrentKey,
  toKey,
  toKeyWithGrants,
} from './schemas.ts'
import {
  createKey,
  createOrganizationKey,
  getCurrentKey,
  getKey,
  listKeys,
  patchKey,
  readSessionScope,
  revokeKey,
  revokeOrganizationKey,
} from './store.ts'

export interface KeyDeps {
  db: Db
  vault: Vault
  /** Called before the answer, with the hash of a key before its change. */
  forgetCaller: Callers['forget']
  publicUrl(): string
  limits: KeyLimits
  findSummary: FindSummary
}

// Accepts any text: a malformed id is unknown, a 404.
const KeyParams = Type.Object({ key_id: Uuid('The id of the key.') })

/**
 * The routes of scoped keys and of the other organization keys, which need an organization key, and of the caller's own
 * key.
 */
export const keyRoutes: FastifyPluginAsyncTypebox<KeyDeps> = async (app, deps) => {
  const { db, findSummary, forgetCaller, publicUrl } = deps
  async function answerList(
    reply: FastifyReply,
    kind: 'scoped' | 'organization',
    { limit, cursor }: Static<typeof PageQuery>,
  ) {
    const { organizationId } = reply.request.caller
    await sendPage(reply, {
      limit,
      position: positionOf(cursor, isId),
      item: Key,
      read: (atMost, position) => listKeys(db, organizationId, kind, { limit: atMost, position }),
      show: toKey,
      publicUrl,
    })
    return reply
  }

  app.get(
    '/v1/key',
    {
      config: { access: 'any' },
      schema: {
        operationId: 'getCurrentKey',
        summary: 'Read the key of the call itself',
        description: 'Tells what the key is and what it may do.',
        tags: ['keys'],
        response: { 200: CurrentKey },
      },
    },
    async ({ caller }) => {
      const { key, organizationName } = await getCurrentKey(db, caller.keyId)
      return toCurrentKey(key, caller, organizationName, deps.limits)
    },
  )

  app.post(
    '/v1/keys',
    {
      config: { access: 'org', event: 'key.create', idempotency: 'transaction' },
      schema: {
        operationId: 'createKey',
        summary: 'Create a scoped key',
        description:
          'Creates a key that has only the listed permissions, on only the listed instances: for bots and ' +
          'third parties that you trust with them. Whoever may talk to an agent may have it do whatever the agent may ' +
          'do, with its tools, files and channels. The key itself is in this answer only.',
        tags: ['keys'],
        body: CreateKey,
        response: { 201: NewKey, ...failures(400, 409) },
      },
    },
    async (request, reply) => {
      const { name, instance_ids: instanceIds, permissions, expires_at: expiresAt } = request.body
      const wanted = { name, instanceIds, permissions, expiresAt, sessions: readSessionScope(request.body) }
      const created = await idempotent(deps, request, reply.code(201), async (tx) => {
        const { key, row } = await createKey(tx, request.caller.organizationId, wanted)
        return { ...toKey(row), raw_key: key }
      })
      return reply.send(created)
    },
  )

  app.post(
    '/v1/instances/:instance_id/client_tokens',
    {
      config: { access: 'interact', session: 'handler', event: null, idempotency: 'none' },
      schema: {
        operationId: 'createClientToken',
        summary: 'Create a client token for a browser',
        description:
          'Creates a token with which a web page or an app talks to the agent itself: it may only `interact`, and only ' +
          'in these sessions. Your backend makes it for a person who has signed in. It is not stored, expires after ' +
          'an hour at most, and ends with the key that made it. A token makes no other token. Whoever may talk to an ' +
          'agent may have it do whatever the agent may do.',
        tags: ['keys'],
        params: InstanceParams,
        body: CreateClientToken,
        response: { 201: ClientToken, ...failures(400, 404) },
      },
    },
    async ({ body, caller, params }, reply) => {
      const { id: instanceId } = await findSummary(caller.organizationId, params.instance_id)
      if (caller.token) throw new AppError('lacks_permission', texts.needsKey)
      const sessions = readSessionScope(body)
      if (!sessions) throw new AppError('invalid_value', texts.noSessions)
      if (!isWithin(sessions, caller.sessions)) throw new AppError('invalid_value', texts.sessionsBeyondKey)
      const { end_user: endUser = null, expires_in: seconds = maxTokenSeconds } = body
      const expiresAt = (await readDatabaseMs(db)) + seconds * 1000
      const grant = { keyHash: caller.keyHash, instanceId, sessions, endUser, expiresAt }
      const answer = { client_token: sealClientToken(deps.vault, grant), expires_at: toSeconds(new Date(expiresAt)) }
      return reply.code(201).send(answer)
    },
  )

  app.get(
    '/v1/keys',
    {
      config: { access: 'org', inFlight: 'lists' },
      schema: {
        operationId: 'listKeys',
        summary: 'List scoped keys',
        description:
          'Newest first. Expired keys stay in the list with `is_active: false`, and revoked ones for a year.',
        tags: ['keys'],
        querystring: PageQuery,
        response: { 200: Type.Array(Key), ...failures(400) },
      },
    },
    ({ query }, reply) => answerList(reply, 'scoped', query),
  )

  app.get(
    '/v1/keys/:key_id',
    {
      config: { access: 'org' },
      schema: {
        operationId: 'getKey',
        summary: 'Read a scoped key with its grants',
        description: 'Returns the key with its instances and its permissions on each.',
        tags: ['keys'],
        params: KeyParams,
        response: { 200: KeyWithGrants, ...failures(404) },
      },
    },
    async ({ caller, params }) => toKeyWithGrants(await getKey(db, caller.organizationId, 'scoped', params.key_id)),
  )

  app.patch(
    '/v1/keys/:key_id',
    {
      config: { access: 'org', event: 'key.update' },
      schema: {
        operationId: 'updateKey',
        summary: 'Rename a scoped key, or set its expiry',
        description:
          'Changes what is sent of the name and the expiry, never the permissions. To rotate a key, create ' +
          'a new one and set an expiry on the old one. A revoked key cannot be changed.',
        tags: ['keys'],
        params: KeyParams,
        body: PatchKey,
        response: { 200: KeyWithGrants, ...failures(400, 404, 409) },
      },
    },
    async ({ body, caller, params }) => {
      const patch = { name: body.name, expiresAt: body.expires_at }
      const row = await patchKey(db, caller.organizationId, params.key_id, patch)
      forgetCaller(row.keyHash)
      return toKeyWithGrants(row)
    },
  )

  app.delete(
    '/v1/keys/:key_id',
    {
      config: { access: 'org', event: 'key.revoke' },
      schema: {
        operationId: 'revokeKey',
        summary: 'Revoke a scoped key',
        description:
          'This server refuses the key at once, and other servers of the installation do within a second. Open ' +
          'streams of the key end within five. The key stays in the list for a year. Revoking it again changes nothing.',
        tags: ['keys'],
        params: KeyParams,
        response: { 204: Type.Null(), ...failures(404) },
      },
    },
    async ({ caller, params }, reply) => {
      forgetCaller((await revokeKey(db, caller.organizationId, params.key_id)).keyHash)
      return reply.code(204).send(null)
    },
  )

  app.post(
    '/v1/organization/keys',
    {
      config: { access: 'org', event: 'key.create', idempotency: 'transaction' },
      schema: {
        operationId: 'createOrganizationKey',
        summary: 'Create another organization key',
        description:
          'Creates another key with every permission in the organization. To rotate a key, create one, switch your ' +
          'services to it, and revoke the old one. The key itself is in this answer only.',
        tags: ['keys'],
        body: CreateOrganizationKey,
        response: { 201: NewKey, ...failures(400, 409) },
      },
    },
    async (request, reply) => {
      const wanted = { name: request.body.name, expiresAt: request.body.expires_at }
      const created = await idempotent(deps, request, reply.code(201), async (tx) => {
        const { key, row } = await createOrganizationKey(tx, request.caller.organizationId, wanted)
        return { ...toKey(row), raw_key: key }
      })
      return reply.send(created)
    },
  )

  app.get(
    '/v1/organization/keys',
    {
      config: { access: 'org', inFlight: 'lists' },
      schema: {
        operationId: 'listOrganizationKeys',
        summary: 'List organization keys',
        description:
          'Newest first, with the key from the signup. Expired keys stay in the list, and revoked ones for a year.',
        tags: ['keys'],
        querystring: PageQuery,
        response: { 200: Type.Array(Key), ...failures(400) },
      },
    },
    ({ query }, reply) => answerList(reply, 'organization', query),
  )

  app.delete(
    '/v1/organization/keys/:key_id',
    {
      config: { access: 'org', event: 'key.revoke' },
      schema: {
        operationId: 'revokeOrganizationKey',
        summary: 'Revoke an organization key',
        description:
          'Works as for scoped keys, also on the key of the call itself. The last active key cannot be revoked: 409. ' +
          'A key with an expiry counts as active until then, so keep one without an expiry.',
        tags: ['keys'],
        params: KeyParams,
        response: { 204: Type.Null(), ...failures(404, 409) },
      },
    },
    async ({ caller, params }, reply) => {
      forgetCaller((await revokeOrganizationKey(db, caller.organizationId, params.key_id)).keyHash)
      return reply.code(204).send(null)
    },
  )
}
