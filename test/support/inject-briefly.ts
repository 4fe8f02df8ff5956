import { text } from 'node:stream/consumers'
import type { FastifyInstance, InjectOptions } from 'fastify'

/** Streams without an end. */
const isEndless = (url: unknown) => /\/events\/stream(\?|$)/.test(String(url))

/** Sends a request, and leaves a stream without an end as soon as it has begun. */
export async function injectBriefly(app: FastifyInstance, request: InjectOptions) {
  if (!isEndless(request.url)) return app.inject(request)
  const answer = await app.inject({ ...request, payloadAsStream: true })
  const { statusCode, headers } = answer
  if (statusCode === 200) answer.stream().destroy()
  const body = statusCode === 200 ? '' : await text(answer.stream())
  return { statusCode, headers, body, json: () => JSON.parse(body) }
}
