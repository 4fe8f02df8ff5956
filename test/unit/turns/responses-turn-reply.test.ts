import { once } from 'node:events'
import { type AddressInfo, connect } from 'node:net'
import fastify from 'fastify'
import { expect, onTestFinished, test } from 'vitest'
import { beginTurn, replyWithTurn } from '#turns/reply.ts'
import { createTurnRunner } from '#turns/runner.ts'
import { defaultTurnTimeouts, type Turn, turnAbandoned } from '#turns/turn.ts'
import { runnerDeps } from '../../support/turn-routes.ts'

async function* run({ signal }: Turn): AsyncGenerator<string, string> {
  signal.throwIfAborted()
  yield ''
  return ''
}

test('a turn whose client left before it begins is ended, and its request gets no answer', async () => {
  const turns = createTurnRunner(defaultTurnTimeouts, runnerDeps)
  const begun = Promise.withResolvers<Turn>()
  const errors: unknown[] = []
  const app = fastify()
  onTestFinished(() => app.close())
  app.addHook('onError', async (_request, _reply, error) => void errors.push(error))
  app.get('/', async (_request, reply) => {
    await once(reply.raw, 'close')
    const turn = beginTurn(reply, { runner: turns, findCaller: async () => null, graceMs: 10 })
    begun.resolve(turn)
    return replyWithTurn(reply, turn, run(turn))
  })
  await app.listen({ port: 0, host: '127.0.0.1' })
  const client = connect((app.server.address() as AddressInfo).port, '127.0.0.1')
  client.write('GET / HTTP/1.1\r\nhost: x\r\n\r\n')
  await once(app.server, 'request')
  client.destroy()
  expect((await begun.promise).signal.reason).toBe(turnAbandoned)
  await app.close()
  expect(errors).toEqual([])
})
