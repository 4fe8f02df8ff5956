import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { startFakeModelProvider } from '../test/support/fake-model-provider.mjs'
import { turnsInTurn } from './agent-turns.ts'
import { createAgent, secondsOf, withChowder } from './agents.ts'
import { type Figure, figure, median, type Round } from './figures.ts'
import { proportionalMb } from './process.ts'
import type { Tenant } from './tenant.ts'

const startTimeoutMs = 3 * 60_000
const starts = 10
const rounds = 6
const turnsARound = 15
/** A turn in which the agent runs a program, and one in which it reads a file. */
const toolTurns = {
  exec: '[[fake:tool=exec {"command":"echo $((40 + 2))"}]]',
  read: '[[fake:tool=read {"path":"AGENTS.md"}]]',
}
/** The most that a jail may take beside its agent. */
const mostMb = 10

async function parentOf(pid: number): Promise<number> {
  const [, parent] = /^PPid:\s+(\d+)$/m.exec(await readFile(`/proc/${pid}/status`, 'utf8')) ?? []
  return Number(parent)
}

/** The memory of what runs around an agent in a jail and not without one: its first process, and the two before it. */
async function memoryOfJail(dataDir: string, id: string): Promise<number> {
  const first = Number.parseInt(await readFile(join(dataDir, 'sandboxes', id, 'init'), 'utf8'), 10)
  const inBetween = await parentOf(first)
  const pids = [first, inBetween, await parentOf(inBetween)]
  return (await Promise.all(pids.map(proportionalMb))).reduce((sum, one) => sum + one, 0)
}

interface Side {
  tenant: Tenant
  dataDir: string
}

/** Two things in turn, such as the same with a jail and without; the one that is first changes. */
async function inTurn(count: number, jailed: () => Promise<number>, plain: () => Promise<number>): Promise<Round[]> {
  const all: Round[] = []
  for (let round = 0; round < count; round += 1) {
    const isFirst = round % 2 === 0
    const first = await (isFirst ? jailed : plain)()
    const second = await (isFirst ? plain : jailed)()
    all.push({ chowder: isFirst ? first : second, limit: isFirst ? second : first })
  }
  return all
}

/** The time of turns with tools, of an agent with two rooms beside one with one room, in turn. */
async function measureRooms(tenant: Tenant, oneRoom: string, report: (text: string) => void): Promise<Figure[]> {
  const twoRooms = await createAgent(tenant, startTimeoutMs, { isolation: 'two_rooms' })
  const figures: Figure[] = []
  for (const [tool, input] of Object.entries(toolTurns)) {
    report(`turns with the tool ${tool}, with one room and with two, ${rounds} rounds`)
    const msOf = async (id: string) =>
      ((await secondsOf(() => turnsInTurn(tenant, id, turnsARound, input))) / turnsARound) * 1000
    await msOf(oneRoom)
    await msOf(twoRooms)
    const all = await inTurn(
      rounds,
      () => msOf(twoRooms),
      () => msOf(oneRoom),
    )
    figures.push(figure(`turn with ${tool}, two rooms`, 'ms', { atMost: 2 }, all))
  }
  await tenant.call('DELETE', `/v1/instances/${twoRooms}`)
  return figures
}

async function measureSides(jailed: Side, plain: Side, report: (text: string) => void): Promise<Figure[]> {
  const startWith = async ({ tenant }: Side) => {
    let id = ''
    const seconds = await secondsOf(async () => {
      id = await createAgent(tenant, startTimeoutMs)
    })
    await tenant.call('DELETE', `/v1/instances/${id}`)
    return seconds
  }
  report('agents in jails and without, which do not count')
  const [inJail, without] = [
    await createAgent(jailed.tenant, startTimeoutMs),
    await createAgent(plain.tenant, startTimeoutMs),
  ]
  const turnsOf = async ({ tenant }: Side, id: string) =>
    turnsARound / (await secondsOf(() => turnsInTurn(tenant, id, turnsARound)))
  await turnsOf(jailed, inJail)
  await turnsOf(plain, without)
  report(`turns of an agent in a jail and of one without, ${rounds} rounds`)
  const turns = await inTurn(
    rounds,
    () => turnsOf(jailed, inJail),
    () => turnsOf(plain, without),
  )
  const memory = await memoryOfJail(jailed.dataDir, inJail)
  const rooms = await measureRooms(jailed.tenant, inJail, report)
  report(`starts of agents in jails and without, ${starts} rounds`)
  const seconds = await inTurn(
    starts,
    () => startWith(jailed),
    () => startWith(plain),
  )
  const medians = {
    chowder: median(seconds.map(({ chowder }) => chowder)),
    limit: median(seconds.map(({ limit }) => limit)),
  }
  return [
    figure('create to running, in a jail', 's', { atMost: 1.05 }, [medians]),
    figure('agent in a jail, turns', '/s', { atLeast: 1 / 1.05 }, turns),
    figure('memory of a jail', 'MB', { atMost: 1 }, [{ chowder: memory, limit: mostMb }]),
    ...rooms,
  ]
}

/**
 * What a jail costs: from a create to a running agent, and turns a second, beside the same without jails; and the memory
 * of the processes around an agent. Also what the second room of an agent costs turns with tools.
 */
export async function measureJail(report: (text: string) => void): Promise<Figure[]> {
  const provider = await startFakeModelProvider()
  try {
    const withIsolation = <T>(LOCAL_ISOLATION: string, act: (side: Side) => Promise<T>) =>
      withChowder({ ANTHROPIC_BASE_URL: provider.url, LOCAL_ISOLATION }, report, act)
    return await withIsolation('none', (plain) =>
      withIsolation('jail', (jailed) => measureSides(jailed, plain, report)),
    )
  } finally {
    await provider.close()
  }
}
