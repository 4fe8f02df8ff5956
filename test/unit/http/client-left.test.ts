import { once } from 'node:events'
import { type AddressInfo, connect } from 'node:net'
import fastify, { type FastifyReply } from 'fastify'
import { expect, onTestFinished, test } from 'vitest'
import { AppError } from '#errors/app-error.ts'
import { clientLeft } from '#http/client-left.ts'

/** A server whose one route runs `handler`, and a client that has sent its request. */
async function request(handler: (reply: FastifyReply) => unknown) {
  const app = fastify()
  app.get('/', (_request, reply) => handler(reply))
  await app.listen()
  onTestFinished(() => app.close())
  const client = connect((app.server.address() as AddressInfo).port)
  onTestFinished(() => void client.destroy())
  client.write('GET / HTTP/1.1\r\nHost: localhost\r\n\r\n')
  return client
}

test('the signal fires when the client leaves while the handler runs', async () => {
  const { promise, resolve } = Promise.withResolvers<AbortSignal>()
  const client = await request((reply) => resolve(clientLeft(reply)))
  const signal = await promise
  expect(signal.aborted).toBe(false)
  client.destroy()
  await once(signal, 'abort')
  expect(signal.reason).toBeInstanceOf(AppError)
})

test('the signal has fired already when the client left before the call', async () => {
  const { promise, resolve } = Promise.withResolvers<AbortSignal>()
  const { promise: began, resolve: begin } = Promise.withResolvers<void>()
  const client = await request(async (reply) => {
    begin()
    await once(reply.raw, 'close')
    resolve(clientLeft(reply))
    reply.hijack()
  })
  await began
  client.destroy()
  const signal = await promise
  expect(signal.aborted).toBe(true)
  expect(signal.reason).toBeInstanceOf(AppError)
})

test('the signal does not fire for an answer that was sent', async () => {
  const { promise, resolve } = Promise.withResolvers<AbortSignal[]>()
  await request((reply) => {
    const signal = clientLeft(reply)
    reply.raw.once('close', () => resolve([signal, clientLeft(reply)]))
    return reply.send('all of it')
  })
  const signals = await promise
  expect(signals.map(({ aborted }) => aborted)).toEqual([false, false])
})
