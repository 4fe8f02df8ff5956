import { Readable } from 'node:stream'
import { setImmediate } from 'node:timers/promises'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { FastifyReply } from 'fastify'
import type { Db } from '#database/client.ts'
import type { Instance } from '#database/schema.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { clientLeft } from '#http/client-left.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import type { FindSummary } from '#instances/find.ts'
import { toCallerError } from '#instances/gateway/errors.ts'
import { createInstanceMask } from '#instances/gateway/secrets.ts'
import type { Regions } from '#instances/regions.ts'
import { getInstance } from '#instances/row.ts'
import { isSettled, publicStatus } from '#instances/status.ts'
import { openStreams } from '#platform/metrics.ts'
import type { Vault } from '#platform/secrets.ts'
import type { LogLine, LogPage } from '#sandbox/driver.ts'
import { followLog } from './follow.ts'
import { defaultTail, Events, Line, LogQuery } from './schemas.ts'

export interface LogDeps {
  db: Db
  vault: Vault
  regions: Regions
  findSummary: FindSummary
}

const readTimeoutMs = 15_000
/** A connection is closed after a follower has taken no bytes for this long; comments are sent more often. */
const idleTimeoutMs = 60_000
/** Each follower asks the platform about once a second. */
const maxFollowersOfInstance = 5
const maxFollowers = 100
const retryAfterSeconds = 10
const longLine = 1000

/** The routes of the gateways' output. */
export const logRoutes: FastifyPluginAsyncTypebox<LogDeps> = async (app, { db, vault, regions, findSummary }) => {
  /** The followers of each instance in this process. */
  const followers = new Map<string, number>()
  const closing = new AbortController()
  // A server waits for its open requests before it closes.
  app.addHook('preClose', async () => closing.abort())

  async function mask(row: Instance, lines: readonly LogLine[]): Promise<Line[]> {
    const hide = await createInstanceMask(db, vault, row)
    const masked: Line[] = []
    for (const { text, isCut } of lines) {
      if (text.length > longLine) await setImmediate() // a page of long lines takes too long at once
      masked.push({ text: hide(text, isCut), truncated: isCut })
    }
    return masked
  }

  async function read(row: Instance, options: { lines: number; after?: string }): Promise<LogPage> {
    const signal = AbortSignal.timeout(readTimeoutMs)
    const { sandboxes } = regions.of(row)
    return sandboxes.readLog(row.id, options, signal).catch((cause: unknown) => {
      throw signal.aborted ? new AppError('gateway_timeout', texts.filesTooSlow, { cause }) : toCallerError(cause)
    })
  }

  function takePlace(id: string, reply: FastifyReply): void {
    const own = followers.get(id) ?? 0
    const all = [...followers.values()].reduce((sum, count) => sum + count, 0)
    if (own >= maxFollowersOfInstance || all >= maxFollowers)
      throw new AppError('too_much_in_flight', texts.tooManyFollowers, { retryAfterSeconds })
    followers.set(id, own + 1)
    reply.raw.once('close', () => {
      const left = (followers.get(id) ?? 1) - 1
      if (left > 0) followers.set(id, left)
      else followers.delete(id)
    })
  }

  function follow(reply: FastifyReply, row: Instance, tail: number): void {
    const { id, organizationId } = row
    takePlace(id, reply)
    const log = {
      read: (options: { lines: number; after?: string }) => read(row, options),
      // Rereads the row: a secret may be newer than the stream.
      mask: async (lines: LogLine[]) => mask(await getInstance(db, organizationId, id), lines),
      whyEnded: async () => {
        const row = await findSummary(organizationId, id)
        const status = publicStatus(row)
        // The gateway still writes while it is being stopped.
        const hasEnded = status === 'terminated' || isSettled(row)
        return (hasEnded && texts.logEnded[status]) || null
      },
    }
    const signal = AbortSignal.any([clientLeft(reply), closing.signal])
    reply.raw.setTimeout(idleTimeoutMs, () => reply.raw.destroy())
    openStreams.inc()
    const stream = Readable.from(followLog(log, tail, signal), { objectMode: false })
    stream.once('close', () => openStreams.dec())
    void reply.type('text/event-stream').header('x-accel-buffering', 'no').send(stream)
  }

  app.get(
    '/v1/instances/:instance_id/logs',
    {
      config: { access: 'configure' },
      schema: {
        operationId: 'readLogs',
        summary: 'Read the output of an agent',
        description:
          'The last lines that the gateway of the instance has written, of all its runs, oldest first. With ' +
          '`follow=true` new lines follow as they come, also after a restart, until the instance is stopped ' +
          'or deleted, or its status is `error`. ' +
          'Secrets that this server knows are hidden; what else an agent writes is shown. Chowder keeps about 10 MB.',
        tags: ['instances'],
        params: InstanceParams,
        querystring: LogQuery,
        response: {
          200: {
            description: 'The lines, as JSON or, with `follow=true`, as a stream.',
            content: { 'application/json': { schema: Type.Array(Line) }, 'text/event-stream': { schema: Events } },
          },
          ...failures(404, 429, 502, 504),
        },
      },
    },
    async ({ caller, params, query: { tail = defaultTail, follow: isFollowed = false } }, reply) => {
      const row = await getInstance(db, caller.organizationId, params.instance_id)
      reply.header('cache-control', 'no-store')
      const hasOutput = row.desiredState !== 'terminated' // otherwise its log is deleted, and soon its secrets
      if (isFollowed && hasOutput) {
        follow(reply, row, tail)
        return reply
      }
      const { lines, rest } = hasOutput ? await read(row, { lines: tail }) : { lines: [], rest: null }
      const shown = tail === 0 ? [] : [...lines, ...(rest ? [rest] : [])].slice(-tail)
      return shown.length > 0 ? mask(row, shown) : []
    },
  )
}
