import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type Fact, type Figure, isHeld, value, written } from './figures.ts'
import { plotBars } from './plot.ts'

/** A row of the table in docs/performance.md. */
interface Row {
  /** The name of the figure. */
  name: string
  /** The limit that is measured in the same run. */
  limit?: string
  /** The figures that others publish for the closest thing, with their sources. */
  peers?: string
  /** Why there is no figure. */
  absent?: string
}

const agentSandbox = 'https://github.com/kubernetes-sigs/agent-sandbox/blob/main/docs'
const peers = {
  cold: `42 to 50 s p50 on GKE ([agent-sandbox](${agentSandbox}/performance-tuning.md))`,
  warm: `0.09 s p50, 0.38 s p99 of a pod at 45 claims a second ([agent-sandbox](${agentSandbox}/performance-tuning.md))`,
  burst: `1.5 s p50, 3.2 s p90 of 300 claims at once ([agent-sandbox](${agentSandbox}/performance-tuning.md))`,
  scaledToZero:
    '15 to 30 s of an OpenClaw ([sample of AWS](https://github.com/aws-samples/sample-openclaw-multi-tenant-platform))',
  suspended: `1 to 3 s of a light image, 5 to 15 s and more of a large one ([agent-sandbox](${agentSandbox}/auto_suspension.md))`,
  snapshot:
    'a few hundred ms ([Fly Machines](https://fly.io/docs/reference/suspend-resume)); about 1 s ([Novita](https://novita.ai/docs/guides/sandbox-persistence))',
  frozen: '0.10 s p50 of a sandbox with 64 MiB ([sandstorm](https://github.com/deeplethe/sandstorm))',
}
const noFreezing = 'agents were stopped'
const noStopping = 'agents were frozen'

/** The rows of the table in docs/performance.md, in their order. The bench has more figures. */
export const rows: Row[] = [
  { name: 'create to running', limit: 'a gateway started by hand', peers: peers.cold },
  { name: '20 creates at once', limit: '20 gateways started by hand' },
  { name: 'create to the first word' },
  { name: 'create to running, from the pool', peers: peers.warm },
  { name: 'create to running, from the pool, with overrides' },
  { name: 'create to the first word, from the pool' },
  { name: '10 creates at once, 3 in the pool: the first 3' },
  { name: '10 creates at once, 3 in the pool: all', peers: peers.burst },
  { name: 'wake to the first byte, stopped', peers: `${peers.scaledToZero}; ${peers.suspended}`, absent: noStopping },
  { name: 'wake to the first word, stopped', absent: noStopping },
  { name: 'wake to the first byte, frozen', peers: `${peers.frozen}; ${peers.snapshot}`, absent: noFreezing },
  { name: 'wake to the first word, frozen', absent: noFreezing },
  { name: 'memory of an agent, ready' },
  { name: 'memory of an agent, after 10 turns' },
  { name: 'memory of an agent, asleep, stopped', absent: noStopping },
  { name: 'memory of an agent, asleep, frozen', absent: noFreezing },
  { name: 'create accepted', limit: 'Fastify and one INSERT' },
  { name: 'proxied turns', limit: 'Fastify, undici and one INSERT' },
  { name: 'proxy added p50', limit: 'the same' },
  { name: 'agent, turns', limit: 'without the relay' },
  { name: 'background turn', limit: 'an ordinary turn' },
  { name: 'turn with exec, two rooms', limit: 'one room' },
]

/** The circumstances of a run, for the line below the table. */
export interface Circumstances {
  date: string
  commit: string
  cores: number
  cpu: string
  memoryGb: number
  node: string
}

const find = (figures: (Fact | Figure)[], name: string) => figures.find((one) => one.name === name)

function limitOf(one: Fact | Figure | undefined, limit = ''): string {
  if (!one || !('bar' in one)) return limit
  const bar = 'atLeast' in one.bar ? `at least ${one.bar.atLeast}` : `at most ${one.bar.atMost}`
  const missed = isHeld(one) ? '' : ', missed'
  return `${limit}: ${written(one.limit)} ${one.unit}; ratio ${one.ratio.toFixed(2)} of ${bar}${missed}`
}

/** The table of docs/performance.md, with the line below it. */
export function pageTable(figures: (Fact | Figure)[], run: Circumstances): string {
  const lines = rows.map(({ name, limit, peers = '', absent = 'not measured' }) => {
    const one = find(figures, name)
    return `| ${[name, one ? value(one) : absent, limitOf(one, limit), peers].join(' | ')} |`
  })
  return [
    '| | Chowder | limit in the same run | others publish |',
    '|---|---|---|---|',
    ...lines,
    '',
    `Measured on ${run.date} at commit \`${run.commit}\`: ${run.cores} cores (${run.cpu}), ${run.memoryGb} GB, ` +
      `Node ${run.node}.`,
  ].join('\n')
}

/** The plot of docs/performance.md, from a create or a request to the first word. */
export function pagePlot(figures: (Fact | Figure)[]): string {
  const bars = (
    [
      ['cold', 'create to the first word'],
      ['woken, stopped', 'wake to the first word, stopped'],
      ['woken, frozen', 'wake to the first word, frozen'],
      ['warm', 'create to the first word, from the pool'],
    ] as const
  ).map(([name, figure]) => {
    const one = find(figures, figure)
    const absent = rows.find((row) => row.name === figure)?.absent ?? 'not measured'
    return { name, value: one?.chowder, p95: one?.p95, absent }
  })
  return plotBars('Seconds to the first word of an agent: median, and p95 by the thin line', 's', bars)
}

const docs = join(import.meta.dirname, '../docs')
const begin = '<!-- npm run bench -- --write -->'
const end = '<!-- end of the bench -->'

/** Writes the table and the plot into docs/. */
export async function writePage(figures: (Fact | Figure)[], run: Circumstances): Promise<void> {
  const path = join(docs, 'performance.md')
  const [before, rest] = (await readFile(path, 'utf8')).split(`${begin}\n`)
  const [, after] = rest?.split(`${end}\n`) ?? []
  if (before === undefined || after === undefined) throw new Error(`${path} has lost the marks of its table`)
  await writeFile(path, `${before}${begin}\n${pageTable(figures, run)}\n${end}\n${after}`)
  await writeFile(join(docs, 'first-word.svg'), pagePlot(figures))
}
