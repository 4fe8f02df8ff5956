import { setTimeout as sleep } from 'node:timers/promises'
import { startChowder } from '../demo/chowder-process.ts'
import { type Fact, fact } from './figures.ts'
import { coresBusy, residentMb } from './process.ts'
import {
  createSetup,
  createsOf,
  makeOwners,
  pollsOf,
  type Request,
  type Setup,
  turnsOf,
  type Undo,
  undoAll,
} from './setup.ts'

const replicas = [1, 2, 4]
const warmUpMs = 2500
const loadMs = 8000
const roles = ['api', 'worker', 'relay'] as const
/** Until the memory that a start took is given back. */
const idleMs = 30_000

async function measureIdle({ chowder }: Setup): Promise<Fact[]> {
  const undo: Undo = []
  try {
    const pids: number[] = []
    for (const role of roles) {
      const started = await startChowder({ ...chowder, env: { ...chowder.env, RELAY_ROLE: 'relay' }, role })
      undo.push(() => started.stop('SIGTERM'))
      pids.push(started.pid)
    }
    await sleep(idleMs)
    const memory = await Promise.all(pids.map(residentMb))
    return roles.map((role, index) => fact(`memory of a process with the role ${role}, idle`, memory[index] ?? 0, 'MB'))
  } finally {
    await undoAll(undo)
  }
}

/**
 * The memory of each role of Chowder, idle. Creates, status polls and turns a second through one, two and four processes of the API on one database, with the
 * cores that they kept busy of all that were busy, and their memory.
 */
export async function measureReplicas(report: (text: string) => void): Promise<Fact[]> {
  const undo: Undo = []
  try {
    report('starting PostgreSQL and the API')
    const setup = await createSetup(undo)
    const { pool, chowder, start, load } = setup
    report(`an API, a worker and a relay, idle for ${idleMs / 1000} s`)
    const facts = await measureIdle(setup)
    const apis: { pid: number; url: string; port: number }[] = []
    const startApi = async () => {
      const api = await startChowder({ ...chowder, role: 'api' })
      undo.push(() => api.stop('SIGTERM'))
      apis.push({ ...api, port: Number(new URL(api.url).port) })
      return api.url
    }
    const owners = await makeOwners(pool, await startApi(), await start('./stub-gateway.ts', {}))
    const loads: [what: string, status: number, requests: Request[]][] = [
      ['creates', 201, createsOf(owners)],
      ['status polls', 200, pollsOf(owners)],
      ['proxied turns', 200, turnsOf(owners)],
    ]
    for (const count of replicas) {
      while (apis.length < count) await startApi()
      const ports = apis.map(({ port }) => port)
      const pids = apis.map(({ pid }) => pid)
      const of = count === 1 ? '1 API' : `${count} APIs`
      for (const [what, status, requests] of loads) {
        report(`${what}, ${of}`)
        await load(ports, requests, status, warmUpMs)
        let perSecond = 0
        const cores = await coresBusy(pids, async () => {
          perSecond = (await load(ports, requests, status, loadMs)).perSecond
        })
        facts.push(
          fact(`${what}, ${of}`, perSecond, '/s'),
          fact('  cores busy with them', cores.own, `of ${cores.all.toFixed(2)}`),
        )
      }
      const memory = await Promise.all(pids.map(residentMb))
      facts.push(fact(`memory of each, ${of}`, Math.max(...memory), 'MB at most'))
    }
    return facts
  } finally {
    await undoAll(undo)
  }
}
