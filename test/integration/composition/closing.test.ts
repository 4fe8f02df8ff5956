import { once } from 'node:events'
import { connect } from 'node:net'
import { afterAll, expect, test } from 'vitest'
import { type Answer, api } from '../../support/api-client.ts'
import { FakeDriver } from '../../support/fake-driver.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const chowder = await openTestChowder({ sandboxes: new FakeDriver() })
const url = await chowder.app.listen({ port: 0, host: '127.0.0.1' })
afterAll(() => chowder.close())

test('a closing server answers requests on open connections, and is closed once all are answered', async () => {
  const { key, id: organizationId } = await chowder.signUp()
  const { body: instance } = await chowder.call('POST', '/v1/instances', { key, body: { name: 'a' } })
  let requests = 0
  chowder.app.server.on('request', () => {
    requests += 1
  })
  const waiting: Promise<Answer> = api(url, key).get(`/v1/instances/${instance.id}/status?wait=running`)
  const socket = connect(Number(new URL(url).port), '127.0.0.1')
  let answer = ''
  socket.setEncoding('utf8').on('data', (text: string) => {
    answer += text
  })
  socket.write('GET /v1/organization HTTP/1.1\r\nhost: chowder.test\r\n') // the rest is sent once the server closes
  await until('both to have arrived', async () => requests === 1 && (await connections()) === 2)

  const began = performance.now()
  const closed = chowder.app.close()
  expect((await waiting).body).toMatchObject({ id: instance.id, status: 'provisioning' })
  socket.write(`authorization: Bearer ${key}\r\n\r\n`)
  await once(socket, 'close')
  const [head = '', body = ''] = answer.split('\r\n\r\n')
  expect(head).toMatch(/^HTTP\/1\.1 200 /)
  expect(JSON.parse(body)).toMatchObject({ id: organizationId })
  await closed
  expect(performance.now() - began).toBeLessThan(15_000)
})

const connections = () =>
  new Promise<number>((resolve, reject) =>
    chowder.app.server.getConnections((error, count) => (error ? reject(error) : resolve(count))),
  )
