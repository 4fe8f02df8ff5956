import { type TSchema, Type } from '@sinclair/typebox'
import type { FastifyReply } from 'fastify'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'

/** Positions of the usage have the values of its groups, such as long labels. */
const maxCursorLength = 4096

/** The query of every list. Add to it with `Type.Object({ ...PageQuery.properties, status: … })`. */
export const PageQuery = Type.Object(
  {
    limit: Type.Integer({ minimum: 1, maximum: 1000, default: 100, description: 'The maximum number of items.' }),
    cursor: Type.Optional(
      Type.String({
        maxLength: maxCursorLength,
        description:
          'The position of the page: the value of `X-Next-Cursor` of the page before, or the cursor in its `Link`.',
      }),
    ),
  },
  { additionalProperties: false },
)

/**
 * The position in a cursor of `linkNext`; undefined without a cursor. Throws AppError `invalid_value` for another text.
 */
export function positionOf(cursor: string | undefined, isPosition: (text: string) => boolean): string | undefined {
  if (cursor === undefined) return undefined
  const position = Buffer.from(cursor, 'base64url').toString()
  if (isPosition(position) && cursor === cursorOf(position)) return position
  throw new AppError('invalid_value', texts.unknownCursor, { param: 'cursor' })
}

const cursorOf = (position: string): string => Buffer.from(position).toString('base64url')

/**
 * Sets the headers of the next page: its cursor in `X-Next-Cursor`, and in `Link` the address of this request from
 * `position` on. Generated clients read the first more easily.
 */
export function linkNext(reply: FastifyReply, publicUrl: string, position: string): void {
  // The target of a request can be a whole URL, with any host.
  const { pathname, search } = new URL(reply.request.url, publicUrl)
  const url = new URL(publicUrl + pathname + search)
  const cursor = cursorOf(position)
  url.searchParams.set('cursor', cursor)
  reply.header('link', `<${url}>; rel="next"`)
  reply.header('x-next-cursor', cursor)
}

/** Rows per statement. Mapping and writing them takes some 2 ms. */
const portionRows = 100

interface PageSource<Row> {
  /** Maximum rows of the page. */
  limit: number
  /** The position of the previous page. */
  position: string | undefined
  /** Size in bytes from which a page gets no more portions, whatever its limit. */
  maxBytes?: number
  /** The schema of an item. */
  item: TSchema
  /** Reads up to `limit` rows after a position; `next` is the position after them if more follow. */
  read(limit: number, position: string | undefined): Promise<{ rows: Row[]; next: string | undefined }>
  show(row: Row): object
  publicUrl(): string
}

/**
 * Answers a page of a list, with the link to the next one. Reads and writes a long page in portions, each by a separate
 * statement, so that other requests run in between.
 */
export async function sendPage<Row>(reply: FastifyReply, source: PageSource<Row>): Promise<void> {
  const { limit, maxBytes = Number.POSITIVE_INFINITY, item, read, show, publicUrl } = source
  const write = reply.compileSerializationSchema(item) as (value: object) => string
  const portions: Buffer[] = []
  let bytes = 0
  let rowsLeft = limit
  let { position } = source
  do {
    const { rows, next } = await read(Math.min(portionRows, rowsLeft), position)
    if (rows.length > 0) {
      const text = rows.map((row) => write(show(row))).join(',')
      const portion = Buffer.from(bytes === 0 ? `[${text}` : `,${text}`)
      bytes += portion.length
      portions.push(portion)
    }
    rowsLeft -= rows.length
    position = next
  } while (position !== undefined && rowsLeft > 0 && bytes < maxBytes && !reply.raw.closed)
  if (position !== undefined) linkNext(reply, publicUrl(), position)
  portions.push(Buffer.from(bytes === 0 ? '[]' : ']'))
  reply.type('application/json; charset=utf-8').send(Buffer.concat(portions))
}
