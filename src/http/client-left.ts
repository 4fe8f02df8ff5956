import type { FastifyReply } from 'fastify'
import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'

/**
 * A signal that fires when the client closes its connection before the whole answer was sent, or has closed it before
 * the call. It never fires after the answer. Its reason is an AppError, which is not logged as a bug.
 */
export function clientLeft({ raw }: FastifyReply): AbortSignal {
  const left = new AbortController()
  const leave = () => {
    if (!raw.writableFinished) left.abort(new AppError('client_left', texts.clientLeft))
  }
  if (raw.closed) leave()
  else raw.once('close', leave)
  return left.signal
}
