import { Type } from '@sinclair/typebox'
import type { FastifyReply } from 'fastify'
import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'

/** What every list takes in its query. More of it goes beside: `Type.Object({ ...PageQuery.properties, status: … })`. */
export const PageQuery = Type.Object(
  {
    limit: Type.Optional(
      Type.Integer({ minimum: 1, maximum: 100, description: 'The most items to answer; without it all of them.' }),
    ),
    cursor: Type.Optional(
      Type.String({
        maxLength: 512,
        description: 'Where to go on: the cursor in the `rel="next"` link of the page before (header `Link`).',
      }),
    ),
  },
  { additionalProperties: false },
)

/**
 * The position that a cursor stands for, undefined without one. Throws AppError `invalid` when it is none that
 * `linkNext` made for such positions.
 */
export function positionOf(cursor: string | undefined, isPosition: (text: string) => boolean): string | undefined {
  if (cursor === undefined) return undefined
  const position = Buffer.from(cursor, 'base64url').toString()
  if (isPosition(position) && cursor === cursorOf(position)) return position
  throw new AppError('invalid', texts.unknownCursor)
}

const cursorOf = (position: string): string => Buffer.from(position).toString('base64url')

/** Names the next page in the answer's `Link` header: this request, from `position` on. */
export function linkNext(reply: FastifyReply, publicUrl: string, position: string): void {
  // A request may name its target as a whole URL, with a host of the client's own.
  const { pathname, search } = new URL(reply.request.url, publicUrl)
  const url = new URL(publicUrl + pathname + search)
  url.searchParams.set('cursor', cursorOf(position))
  reply.header('link', `<${url}>; rel="next"`)
}
