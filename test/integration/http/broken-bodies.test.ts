import { type AddressInfo, connect, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, describe, expect, test } from 'vitest'
import { FakeDriver } from '../../support/fake-driver.ts'
import { openTestChowder } from '../../support/test-chowder.ts'
import { until } from '../../support/until.ts'

const megabyte = 1024 * 1024
const bodyTimes = { whole: 2000, linger: 500 }
const inFlightLimits = { bodyBytes: 2 * megabyte }

const chowder = await openTestChowder({
  sandboxes: new FakeDriver(() => ({ kind: 'tcp', host: '127.0.0.1', port: 9 })),
  bodyTimes,
  inFlightLimits,
})
await chowder.app.listen({ host: '127.0.0.1', port: 0 })
const port = (chowder.app.server.address() as AddressInfo).port
const auth = `authorization: Bearer ${(await chowder.signUp()).key}\r\n`
afterAll(() => chowder.close())

const head = (headers: string) =>
  `POST /v1/instances HTTP/1.1\r\nhost: chowder.test\r\ncontent-type: application/json\r\n{authorization}${headers}\r\n`
const body = JSON.stringify({ name: 'agent', external_id: null })
const chunk = (text: string) => `${text.length.toString(16)}\r\n${text}\r\n`

function open() {
  const socket = connect(port, '127.0.0.1').setTimeout(10_000, () => socket.destroy(new Error('no end after 10 s')))
  let received = ''
  socket.on('data', (data) => {
    received += data
  })
  socket.on('error', () => {})
  return { socket, closed: new Promise((resolve) => socket.once('close', resolve)), received: () => received }
}

/** Sends pieces one after the other, and returns the status and code of each answer until the connection ends. */
async function exchange(pieces: string[], isEnded = false): Promise<string[]> {
  const { socket, closed, received } = open()
  for (const piece of pieces) {
    socket.write(piece.replace('{authorization}', auth))
    await sleep(20)
  }
  if (isEnded) socket.end()
  await closed
  return received()
    .split(/(?=HTTP\/1\.1 )/)
    .map((answer) => [answer.slice(9, 12), /"code":"(\w+)"/.exec(answer)?.[1]].filter(Boolean).join(' '))
}

const close = 'connection: close\r\n'
const exact = `content-length: ${body.length}\r\n`
const chunked = 'transfer-encoding: chunked\r\n'

describe('A15: what a body that breaks off, or is not as announced, is answered', () => {
  test.each<[string, string[], string[], boolean?]>([
    ['whole, in pieces', ['201'], [head(exact + close), body.slice(0, 9), body.slice(9)]],
    ['whole, in chunks of one byte', ['201'], [head(chunked + close), [...body].map(chunk).join(''), chunk('')]],
    ['announced, after 100 Continue', ['100', '201'], [head(`expect: 100-continue\r\n${exact}${close}`), body]],
    ['none, in chunks', ['422 validation_failed'], [head(chunked + close), chunk('')]],
    ['cut off by the end of the connection', ['400 malformed_request'], [head(exact), body.slice(0, 9)], true],
    ['cut off in its chunks', ['400 malformed_request'], [head(chunked), chunk(body).slice(0, 9)], true],
    ['longer than announced', ['400 malformed_request'], [head(exact), `${body}more of it`]],
    ['shorter than announced', ['408 timed_out'], [head('content-length: 900\r\n'), body]],
    ['above the limit as announced', ['413 too_large'], [head(`content-length: ${megabyte + 1}\r\n`), body]],
    [
      'above the limit in chunks',
      ['413 too_large'],
      [head(chunked), ...Array(5).fill(chunk(`"${'x'.repeat(megabyte / 4)}"`)), chunk('')],
    ],
  ])('%s', async (_what, answers, pieces, isEnded) => {
    expect(await exchange(pieces, isEnded)).toEqual(answers)
  })

  test('one whose client leaves is nobody’s, and frees what it counted for', async () => {
    const half = `"${'x'.repeat(megabyte / 2)}`
    const leave = async (socket: Socket) => {
      socket.write(head(`content-length: ${megabyte}\r\n`).replace('{authorization}', auth) + half)
      await sleep(50)
      socket.destroy()
    }
    for (let round = 0; round < 4; round += 1) {
      chowder.logged.length = 0
      await leave(open().socket)
      const line = await until('the request to be logged', () =>
        chowder.logged.find((one) => one.includes('"msg":"request"')),
      )
      expect(JSON.parse(line)).toMatchObject({ level: 30, clientLeft: true })
    }
    expect(await exchange([head(exact + close), body])).toEqual(['201'])
  })
})
