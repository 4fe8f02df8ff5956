import fastify from 'fastify'
import { expect, test } from 'vitest'
import type { AppError } from '#errors/app-error.ts'
import { type InFlightLimits, useInFlight } from '#http/in-flight.ts'

const none: InFlightLimits = { turns: 0, sockets: 0, transfers: 0, lists: 0, bodyBytes: 0, processBodyBytes: 0 }

function open(limits: Partial<InFlightLimits>) {
  const app = fastify()
  app.addHook('onRequest', async (request) => {
    Object.assign(request, { caller: { organizationId: request.headers['x-organization'] } })
  })
  const bounds = useInFlight(app, { ...none, ...limits })
  app.setErrorHandler((error: AppError, _request, reply) => reply.code(500).send(error.code))
  const { promise: released, resolve: release } = Promise.withResolvers<void>()
  app.get('/transfers', { config: { inFlight: 'transfers' } }, () => released.then(() => 'done'))
  app.get('/other', async () => 'other')
  const ask = async (path: string, organization = 'a') =>
    (await app.inject({ url: path, headers: { 'x-organization': organization } })).body
  return { bounds, ask, release }
}

test('S19: a request counts until it has its answer, for its organization and its kind alone', async () => {
  const { ask, release } = open({ transfers: 2 })
  const running = [ask('/transfers'), ask('/transfers')]
  await new Promise((resolve) => setTimeout(resolve, 50))
  expect(await ask('/transfers')).toBe('too_much_in_flight')
  expect(await ask('/other')).toBe('other')
  const elsewhere = ask('/transfers', 'b')
  release()
  expect(await Promise.all([...running, elsewhere])).toEqual(['done', 'done', 'done'])
  expect(await ask('/transfers')).toBe('done')
})

test('what was taken is given back once, however often that is called', () => {
  const { bounds } = open({ turns: 1 })
  const giveBack = bounds.take('turns', 'a')
  expect(() => bounds.take('turns', 'a')).toThrow('1 turns')
  giveBack()
  giveBack()
  const again = bounds.take('turns', 'a')
  expect(() => bounds.take('turns', 'a')).toThrow('1 turns')
  again()
})
