import { readFile, writeFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { startChowder } from '../demo/chowder-process.ts'
import type { Answers, Attack } from './attacker.ts'
import { type Figure, figure, median } from './figures.ts'
import { residentMb } from './process.ts'
import { startProgram } from './program.ts'
import { callWith, makeToken, startRelay } from './relay.ts'
import { createSetup, json, type Setup, turn, type Undo, undoAll } from './setup.ts'
import type { SteadyLoad, SteadyMeasured } from './steady-load.ts'
import { connect, type Tenant } from './tenant.ts'

/** The greatest ratio of another customer's p99, and of `/healthz` to its limit. */
const mostSlower = 1.5
const mostHealthMs = 100
/** Of the other customer: half turns, half reads. */
const perSecond = 60
/** Until an attack has all its connections. */
const settleMs = 1500
const storedInstances = 150
const storedEvents = 100_000

/** Each attack, with what the attacker's gateway does, what the attacker has stored before, and what it is on. */
const attacks: {
  kind: Attack['kind']
  gateway?: string
  prepare?: (setup: Setup, tenant: Tenant) => Promise<void>
  /** It is on the relay, whose calls are measured then. */
  onRelay?: true
}[] = [
  { kind: 'bodies' },
  { kind: 'slow clients' },
  { kind: 'answers of many items', gateway: 'items' },
  { kind: 'streams of ignored events', gateway: 'events' },
  { kind: 'streams of output', gateway: 'output' },
  { kind: 'frames of a gateway', gateway: 'frames' },
  { kind: 'frames of a client' },
  { kind: 'turns up to the limit', gateway: 'open' },
  { kind: 'WebSockets up to the limit' },
  { kind: 'waits up to the limit' },
  { kind: 'lists', prepare: fillStores },
  { kind: 'texts for patterns' },
  { kind: 'guesses of relay tokens', onRelay: true },
]

/** What an attack did to another customer. */
export interface Harm {
  attack: string
  /** Of the other customer alone; while the same attack is on another server beside it; and while it is on Chowder. */
  quiet: SteadyMeasured
  beside: SteadyMeasured
  during: SteadyMeasured
  /** Of the API process: before, at the end of the last attack, and the most. */
  memoryMb: { before: number; last: number; most: number }
  answers: Answers
}

/** Instances with long instructions and settings, and many events. */
async function fillStores({ pool }: Setup, { call }: Tenant): Promise<void> {
  const instructions = 'Be brief. '.repeat(9000)
  const settings = { messages: { responsePrefix: 'x'.repeat(60_000) } }
  for (let made = 0; made < storedInstances; made += 1) {
    await call('POST', '/v1/instances', { name: `stored ${made}`, instructions, openclaw_config: settings })
  }
  const { id } = await call<{ id: string }>('GET', '/v1/organization')
  await pool.query(
    `INSERT INTO events (organization_id, type, actor_type, subject)
     SELECT $1, 'file.write', 'key', repeat('x', 1000) FROM generate_series(1, $2)`,
    [id, storedEvents],
  )
}

const medians = (rounds: SteadyMeasured[]): SteadyMeasured => ({
  p50Ms: median(rounds.map(({ p50Ms }) => p50Ms)),
  p99Ms: median(rounds.map(({ p99Ms }) => p99Ms)),
  healthP99Ms: median(rounds.map(({ healthP99Ms }) => healthP99Ms)),
  failed: rounds.reduce((sum, { failed }) => sum + failed, 0),
})

/** Has the kernel forget the most memory that a process had so far. */
const forgetPeak = (pid: number) => writeFile(`/proc/${pid}/clear_refs`, '5')

async function peakMb(pid: number): Promise<number> {
  return Number(/VmHWM:\s*(\d+)/.exec(await readFile(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1024
}

/**
 * Measures a customer's turns and reads at a steady rate: alone, while another customer attacks, and, as the limit,
 * while the same attacker attacks a bare server beside Chowder, which costs the machine what the attack itself costs. An
 * attack on the database is on another Chowder instead.
 * Each attack meets an API process and two customers of its own, with the limits that Chowder has by default. Those
 * of rates are lifted, and the attacker keeps to about the 100 requests a second of a key by itself: its minute does not
 * end. An attack on Chowder lasts for `windows` measurements of `roundMs` each, one after the other.
 */
export async function measureAttacks(
  { rounds, roundMs, windows, only }: { rounds: number; roundMs: number; windows: number; only?: string | undefined },
  report: (text: string) => void,
): Promise<{ harms: Harm[]; figures: Figure[] }> {
  const undo: Undo = []
  const harms: Harm[] = []
  const figures: Figure[] = []
  try {
    report('starting PostgreSQL')
    const setup = await createSetup(undo)
    const { pool, chowder, start } = setup
    const gatewayPort = await start('./stub-gateway.ts', {})
    const load = startProgram(import.meta.resolve('./steady-load.ts'))
    const attacker = startProgram(import.meta.resolve('./attacker.ts'))
    undo.push(() => load.stop())
    undo.push(() => attacker.stop())

    async function makeAgent(tenant: Tenant, port: number): Promise<string> {
      const { id } = await tenant.call<{ id: string }>('POST', '/v1/instances', { name: 'agent' })
      const endpoint = { kind: 'tcp', host: '127.0.0.1', port }
      await pool.query(
        'UPDATE instances SET ready_at = now(), observed_generation = generation, endpoint = $1 WHERE id = $2',
        [endpoint, id],
      )
      return id
    }

    /** Another Chowder with a database of its own, for the same attack. */
    async function attackable(prepare: NonNullable<(typeof attacks)[number]['prepare']>) {
      const other = await createSetup(undo)
      const api = await startChowder({ ...other.chowder, role: 'api' })
      undo.push(() => api.stop('SIGTERM'))
      const tenant = await connect(api.url)
      await prepare(other, tenant)
      return { port: Number(new URL(api.url).port), auth: tenant.auth, instanceId: '' }
    }

    const isChosen = ({ kind }: { kind: string }) => only === undefined || kind.includes(only)
    for (const { kind, gateway, prepare, onRelay } of attacks.filter(isChosen)) {
      report(kind)
      const hostilePort = gateway === undefined ? gatewayPort : await start('./hostile-gateway.ts', { answer: gateway })
      const api = await startChowder({ ...chowder, role: 'api' })
      const relay = onRelay && (await startRelay(chowder, gatewayPort))
      const { pid } = relay ?? api
      try {
        const port = relay?.port ?? Number(new URL(api.url).port)
        const customer = await connect(api.url)
        const customersId = await makeAgent(customer, gatewayPort)
        const headers = { ...json, ...customer.auth }
        const turns: SteadyLoad['requests'] = Array.from({ length: 8 }, (_, session) => ({
          ...turn,
          method: 'POST',
          path: `/v1/instances/${customersId}/session/s${session}/responses`,
          headers,
        }))
        const reads: SteadyLoad['requests'] = ['', '/status', '/events', '/status'].map((path) => ({
          method: 'GET',
          path: `/v1/instances/${customersId}${path}`,
          headers: customer.auth,
        }))
        const requests = relay
          ? [callWith(await makeToken(pool, api.url, { auth: customer.auth, instanceId: customersId }))]
          : turns.flatMap((one, at) => [one, reads[at % reads.length] ?? one])
        const healthPath = relay ? '/relay' : '/healthz'
        const measure = (ms: number) =>
          load.ask<SteadyMeasured>({ port, requests, perSecond, ms, healthPath } satisfies SteadyLoad)

        const tenant = await connect(api.url)
        await prepare?.(setup, tenant)
        const target = { port, auth: tenant.auth, instanceId: await makeAgent(tenant, hostilePort) }
        const elsewhere = prepare
          ? await attackable(prepare)
          : { ...target, port: await start('./sink.ts', { gatewayPort: gateway === undefined ? null : hostilePort }) }
        const memoryMb = { before: 0, last: 0, most: 0 }
        async function attacked(attack: Omit<Attack, 'kind'>, times = 1) {
          await attacker.ask({ ...attack, kind } satisfies Attack)
          await sleep(settleMs)
          const measured: SteadyMeasured[] = []
          while (measured.length < times) {
            const window = await measure(roundMs)
            measured.push(window)
            memoryMb.last = await residentMb(pid)
            if (times > 1) report(windowLine(measured.length, times, window, memoryMb.last))
          }
          return { measured, answers: await attacker.ask<Answers>('end') }
        }

        await measure(roundMs) // compiles code
        await attacked(elsewhere)
        const quiet: SteadyMeasured[] = []
        const beside: SteadyMeasured[] = []
        const during: SteadyMeasured[] = []
        let answers: Answers = {}
        memoryMb.before = await residentMb(pid)
        await forgetPeak(pid)
        for (let round = 0; round < rounds; round += 1) {
          quiet.push(await measure(roundMs))
          beside.push(...(await attacked(elsewhere)).measured)
          const { measured, answers: answered } = await attacked(target, windows)
          during.push(...measured)
          answers = answered
          await sleep(settleMs)
        }
        const harm: Harm = {
          attack: kind,
          quiet: medians(quiet),
          beside: medians(beside),
          during: medians(during),
          memoryMb: { ...memoryMb, most: await peakMb(pid) },
          answers,
        }
        harms.push(harm)
        report(`\n${harmTable([harm])}\n`)
        const pairs = (of: (measured: SteadyMeasured) => number, limit: (at: number) => number) =>
          during.map((measured, at) => ({ chowder: of(measured), limit: limit(at) }))
        figures.push(
          figure(
            `${kind}: p99`,
            'ms',
            { atMost: mostSlower },
            pairs(
              ({ p99Ms }) => p99Ms,
              (at) => beside[Math.floor(at / windows)]?.p99Ms ?? 0,
            ),
          ),
          figure(
            `${kind}: ${healthPath} p99`,
            'ms',
            { atMost: 1 },
            pairs(
              ({ healthP99Ms }) => healthP99Ms,
              () => mostHealthMs,
            ),
          ),
        )
      } finally {
        await relay?.stop('SIGTERM')
        await api.stop('SIGTERM')
      }
    }
    return { harms, figures }
  } finally {
    await undoAll(undo)
  }
}

const windowLine = (number: number, of: number, { p50Ms, p99Ms, failed }: SteadyMeasured, mb: number) =>
  `${number} of ${of}: p50 ${p50Ms.toFixed(1)} ms, p99 ${p99Ms.toFixed(1)} ms, ${failed} failed, ${mb.toFixed(0)} MB`

/** A row for each attack. */
export function harmTable(harms: Harm[]): string {
  const rows = harms.map(({ attack, quiet, beside, during, memoryMb, answers }) => [
    attack,
    ...[quiet, beside, during].map(({ p50Ms, p99Ms }) => `${p50Ms.toFixed(1)} / ${p99Ms.toFixed(1)}`),
    (during.p99Ms / quiet.p99Ms).toFixed(2),
    (during.p99Ms / beside.p99Ms).toFixed(2),
    during.healthP99Ms.toFixed(1),
    String(during.failed),
    [memoryMb.before, memoryMb.last, memoryMb.most].map((mb) => mb.toFixed(0)).join(' / '),
    Object.entries(answers)
      .map(([status, number]) => `${status} × ${number}`)
      .join(', '),
  ])
  const head = [
    'attack',
    'quiet p50 / p99 ms',
    'beside',
    'during',
    'to quiet',
    'to beside',
    '/healthz p99',
    'failed',
    'MB before / last / most',
    'answers to the attacker',
  ]
  const all = [head, ...rows]
  const widths = head.map((_, column) => Math.max(...all.map((row) => row[column]?.length ?? 0)))
  return all.map((row) => `  ${row.map((cell, at) => cell.padEnd(widths[at] ?? 0)).join('   ')}`.trimEnd()).join('\n')
}
