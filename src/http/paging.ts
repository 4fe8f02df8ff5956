import { Type } from '@sinclair/typebox'
import type { FastifyReply } from 'fastify'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'

/** The query of every list. Add to it with `Type.Object({ ...PageQuery.properties, status: … })`. */
export const PageQuery = Type.Object(
  {
    limit: Type.Integer({ minimum: 1, maximum: 1000, default: 100, description: 'The maximum number of items.' }),
    cursor: Type.Optional(
      Type.String({
        maxLength: 512,
        description:
          'The position of the page: the value of `X-Next-Cursor` of the page before, or the cursor in its `Link`.',
      }),
    ),
  },
  { additionalProperties: false },
)

/**
 * The position in a cursor that `linkNext` made; undefined without a cursor. Throws AppError `unknown_cursor` for another
 * text.
 */
export function positionOf(cursor: string | undefined, isPosition: (text: string) => boolean): string | undefined {
  if (cursor === undefined) return undefined
  const position = Buffer.from(cursor, 'base64url').toString()
  if (isPosition(position) && cursor === cursorOf(position)) return position
  throw new AppError('unknown_cursor', texts.unknownCursor, { param: 'cursor' })
}

const cursorOf = (position: string): string => Buffer.from(position).toString('base64url')

/**
 * Names the next page: its cursor in the header `X-Next-Cursor`, and in `Link` the address of this request from
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
