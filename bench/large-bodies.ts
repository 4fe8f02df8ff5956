// Run by hand: node bench/large-bodies.ts
// How long /healthz takes while ten clients send bodies of 20 MiB at once, for each shape of a body.
import { readFile } from 'node:fs/promises'
import { request } from 'node:http'
import { startChowder } from '../demo/chowder-process.ts'
import { present } from '../test/support/present.ts'
import { createSetup, json, makeOwners, type Undo } from './setup.ts'

const clients = 10
const watchedMs = 5000
const mebibyte = 1024 * 1024
const bytes = 20 * mebibyte - 1024
const repeated = (text: string) => text.repeat(Math.floor(bytes / text.length))
const asMessage = (input: unknown) => JSON.stringify({ model: 'openclaw', input })

const shapes: Record<string, string> = {
  'numbers, too many': `{"model":"openclaw","input":[${repeated('1,')}1]}`,
  'objects, too many': `{"model":"openclaw","input":[${repeated('{},')}{}]}`,
  'numbers, as many as allowed': asMessage(Array(49_900).fill(1)),
  'keys, as many as allowed': JSON.stringify(
    Object.fromEntries(Array.from({ length: 49_900 }, (_, at) => [`k${at}`, 1])),
  ),
  'no JSON': `{"model":"openclaw","input":"${repeated('x')}"`,
  'a text for no agent': asMessage('x'.repeat(bytes - 64)),
}
const toAgent: Record<string, string> = {
  'a text': asMessage('x'.repeat(bytes - 64)),
  'a text of escapes': asMessage('\n'.repeat(bytes / 2 - 64)),
  'a text of Chinese': asMessage('漢'.repeat(bytes / 3 - 64)),
  'a text with one emoji': asMessage(`${'x'.repeat(bytes - 64)}🥣`),
  '2,000 messages': asMessage(
    Array.from({ length: 2000 }, () => ({ role: 'user', content: 'x'.repeat(bytes / 2000 - 64) })),
  ),
}

const undo: Undo = []
try {
  const { pool, chowder, start } = await createSetup(undo)
  const api = await startChowder({ ...chowder, role: 'api' })
  undo.push(() => api.stop('SIGTERM'))
  const { port } = new URL(api.url)
  const owners = await makeOwners(pool, api.url, await start('./stub-gateway.ts', {}))
  const owner = present(owners[0])

  /** Sends one body, and resolves to the status of the answer. */
  const send = (body: Buffer, instanceId: string, session: number) =>
    new Promise<number>((resolve, reject) => {
      const path = `/v1/instances/${instanceId}/session/s${session}/responses`
      const headers = { ...json, ...owner.auth, 'content-length': body.length }
      const sent = request({ port, path, method: 'POST', headers, agent: false }, (answer) => {
        answer.resume().once('end', () => resolve(answer.statusCode ?? 0))
      })
      sent.once('error', reject)
      sent.end(body)
    })

  const watch = start.bind(null, './health-watcher.ts')
  const watcherPort = await watch({ port: Number(port) })

  async function measure(name: string, text: string, instanceId: string): Promise<void> {
    const body = Buffer.from(text)
    await send(body, instanceId, 0)
    await fetch(`http://127.0.0.1:${watcherPort}/begin`)
    const until = performance.now() + watchedMs
    const statuses: Record<number, number> = {}
    const client = async (session: number) => {
      while (performance.now() < until) {
        const status = await send(body, instanceId, session)
        statuses[status] = (statuses[status] ?? 0) + 1
      }
    }
    await Promise.all(Array.from({ length: clients }, (_, session) => client(session)))
    const health = await (await fetch(`http://127.0.0.1:${watcherPort}/end`)).text()
    const memory = await readFile(`/proc/${api.pid}/status`, 'utf8')
    const peakMb = Math.round(Number(/VmHWM:\s*(\d+)/.exec(memory)?.[1]) / 1024)
    process.stdout.write(
      `${name.padEnd(30)} ${health}, peak memory ${peakMb} MiB, answers ${JSON.stringify(statuses)}\n`,
    )
  }
  for (const [name, text] of Object.entries(shapes)) await measure(name, text, '00000000-0000-7000-8000-000000000000')
  for (const [name, text] of Object.entries(toAgent)) await measure(name, text, owner.instanceId)
} finally {
  for (const end of undo.reverse()) await end()
}
