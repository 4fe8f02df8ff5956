import { once } from 'node:events'
import { Agent, request } from 'undici'
import { WebSocket } from 'ws'
import { present } from '../test/support/present.ts'
import { residentMb } from './process.ts'
import { json, type Owner } from './setup.ts'

const manyStreams = 1000
const openedAtOnce = 20

/**
 * How many streamed turns a second come back over one WebSocket a customer, each asked once the one before has ended.
 */
export async function webSocketTurns(port: number, owners: Owner[], ms: number): Promise<number> {
  let turns = 0
  const startedAt = performance.now()
  await Promise.all(
    owners.map(async ({ auth, instanceId }) => {
      const socket = new WebSocket(`ws://127.0.0.1:${port}/v1/instances/${instanceId}/responses`, { headers: auth })
      await once(socket, 'open')
      const ask = () => socket.send('{"type":"response.create","model":"openclaw","input":"Hello"}')
      const closed = once(socket, 'close')
      socket.on('message', (data: Buffer) => {
        const head = data.toString('latin1', 0, 40)
        if (head.includes('"error"') || head.includes('response.failed')) throw new Error(data.toString())
        if (!head.includes('response.completed')) return
        turns += 1
        if (performance.now() - startedAt < ms) ask()
        else socket.close()
      })
      ask()
      await closed
    }),
  )
  return turns / ((performance.now() - startedAt) / 1000)
}

/** The memory of the API's process for each of 1,000 open, idle streams, in KiB. */
export async function openStreamKib(pid: number, port: number, owners: Owner[]): Promise<number> {
  const asked = (at: number) => {
    const { auth, instanceId } = present(owners[at % owners.length])
    return { url: `http://127.0.0.1:${port}/v1/instances/${instanceId}/session/s${at}/responses`, headers: auth }
  }
  return ((await openStreamsMb(pid, manyStreams, asked)) * 1024) / manyStreams
}

/** The memory that a process takes for so many open, idle streams, in MB. */
export async function openStreamsMb(
  pid: number,
  count: number,
  asked: (at: number) => { url: string; headers: Record<string, string> },
): Promise<number> {
  const before = await residentMb(pid)
  const leaving = new AbortController()
  const dispatcher = new Agent()
  for (let opened = 0; opened < count; opened += openedAtOnce) {
    await Promise.all(
      Array.from({ length: openedAtOnce }, async (_, at) => {
        const { url, headers } = asked(opened + at)
        const { body } = await request(url, {
          method: 'POST',
          dispatcher,
          headers: { ...json, ...headers },
          body: JSON.stringify({ model: 'openclaw', input: 'stay open', stream: true }),
          signal: leaving.signal,
        })
        body.on('error', () => {})
        await once(body, 'readable')
      }),
    )
  }
  const during = await residentMb(pid)
  leaving.abort()
  await dispatcher.destroy()
  return during - before
}
