import { once } from 'node:events'
import { PassThrough } from 'node:stream'
import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Type } from '@sinclair/typebox'
import type { FastifyReply } from 'fastify'
import type { Db } from '#database/client.ts'
import { readDatabaseMs } from '#database/clock.ts'
import { callsKeptDays } from '#database/model-calls.ts'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'
import { clientLeft } from '#http/client-left.ts'
import { InstanceParams } from '#http/instance-params.ts'
import { failures } from '#http/openapi.ts'
import { positionOf, sendPage } from '#http/paging.ts'
import { getInstance } from '#instances/row.ts'
import { filterOf, isPositionOf } from './query.ts'
import { positionAt, readAllUsage, readUsage, type UsageFilter, type UsageRow } from './read.ts'
import { toUsage, Usage, UsageQuery } from './schemas.ts'

export interface UsageDeps {
  db: Db
  publicUrl(): string
}

const lines = 'application/x-ndjson'
/** An export holds a connection to the database: it must be read within this time. */
const exportMs = 5 * 60_000
/** Maximum exports in this process at once, each of another organization: other requests need connections, too. */
const maxExports = 3

const description =
  'What the models of agents have read and written, as reported by their vendors, and an estimate of its cost. A call counts ' +
  `when it has ended, at the time when it began, for ${callsKeptDays} days. With \`Accept: ${lines}\` all items come at ` +
  'once, one in a line, without pages; they must be read within 5 minutes. A bucket or group without calls has no item.'

const answers = {
  200: {
    description: `The items in the order of time and groups, as a page of JSON or, with \`Accept: ${lines}\`, all of them.`,
    content: { 'application/json': { schema: Type.Array(Usage) }, [lines]: { schema: Usage } },
  },
}

/** The routes of usage: what agents' models have used, and its estimated cost. */
export const usageRoutes: FastifyPluginAsyncTypebox<UsageDeps> = async (app, { db, publicUrl }) => {
  async function answer(reply: FastifyReply, query: UsageQuery, instanceId?: string): Promise<void> {
    const filter = filterOf(reply.request.caller.organizationId, query, instanceId, await readDatabaseMs(db))
    if (reply.request.headers.accept?.includes(lines)) return exportAll(reply, filter)
    /** One item costs as much to add up as all: the items of a page are read once. */
    let rest: { rows: UsageRow[]; hasMore: boolean } | undefined
    await sendPage(reply, {
      limit: query.limit,
      position: positionOf(query.cursor, isPositionOf(filter)),
      item: Usage,
      async read(atMost, position) {
        if (!rest) {
          const found = await readUsage(db, filter, query.limit + 1, position && JSON.parse(position))
          rest = { rows: found.slice(0, query.limit), hasMore: found.length > query.limit }
        }
        const rows = rest.rows.splice(0, atMost)
        const last = rows.at(-1)
        const isLast = rest.rows.length === 0 && !rest.hasMore
        return { rows, next: last && !isLast ? JSON.stringify(positionAt(last)) : undefined }
      },
      show: (row) => toUsage(row, filter.groups),
      publicUrl,
    })
  }

  const exporting = new Set<string>()

  /** The first rows are read before the answer begins, so that a failure has a status. */
  async function exportAll(reply: FastifyReply, filter: UsageFilter): Promise<void> {
    const { organizationId } = filter
    if (exporting.has(organizationId) || exporting.size >= maxExports)
      throw new AppError('too_much_in_flight', texts.tooManyExports, { retryAfterSeconds: 10 })
    exporting.add(organizationId)
    const write = reply.compileSerializationSchema(Usage) as (value: object) => string
    const signal = AbortSignal.any([clientLeft(reply), AbortSignal.timeout(exportMs)])
    const output = new PassThrough()
    let hasBegun = false
    try {
      await readAllUsage(db, filter, async (rows) => {
        signal.throwIfAborted()
        if (!hasBegun) reply.type(lines).send(output)
        hasBegun = true
        const text = rows.map((row) => `${write(toUsage(row, filter.groups))}\n`).join('')
        if (!output.write(text)) await once(output, 'drain', { signal })
      })
      output.end()
    } catch (error) {
      if (!hasBegun) throw error
      output.destroy(error as Error)
    } finally {
      exporting.delete(organizationId)
    }
  }

  app.get(
    '/v1/instances/:instance_id/usage',
    {
      config: { access: 'read', inFlight: 'lists' },
      schema: {
        operationId: 'readInstanceUsage',
        summary: 'Read the usage of an instance',
        description,
        tags: ['instances'],
        params: InstanceParams,
        querystring: UsageQuery,
        response: { ...answers, ...failures(400, 404) },
      },
    },
    async ({ caller, params, query }, reply) => {
      const { id } = await getInstance(db, caller.organizationId, params.instance_id)
      await answer(reply, query, id)
      return reply
    },
  )

  app.get(
    '/v1/organization/usage',
    {
      config: { access: 'org', inFlight: 'lists' },
      schema: {
        operationId: 'readUsage',
        summary: 'Read the usage of the organization',
        description: `Includes all its instances, also deleted ones. ${description}`,
        tags: ['organization'],
        querystring: UsageQuery,
        response: { ...answers, ...failures(400) },
      },
    },
    async ({ query }, reply) => {
      await answer(reply, query)
      return reply
    },
  )
}
