import { execFile } from 'node:child_process'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { pino } from 'pino'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createBacklogMetrics } from '#lifecycle/queue/backlog.ts'
import { createQueue } from '#lifecycle/queue/queue.ts'
import { serveMetrics } from '#platform/metrics.ts'
import { provideProgram } from '../../support/debian-package.ts'
import { present } from '../../support/present.ts'
import { cloneDatabase, type TestDatabase } from '../../support/test-database.ts'
import { until } from '../../support/until.ts'

const run = promisify(execFile)
const log = pino({ level: 'silent' })
const deploy = join(import.meta.dirname, '../../../deploy')
const alertsFile = join(deploy, 'prometheus/alerts.yml')

interface Dashboard {
  panels: { title: string; description: string; targets: { expr: string }[] }[]
}

let database: TestDatabase
let served: Set<string>
let alerts: string
let dashboard: Dashboard
let hasPromtool: boolean

beforeAll(async () => {
  database = await cloneDatabase()
  const queue = createQueue({ kind: 'postgres', connection: database.connection }, log)
  const { port, close } = await serveMetrics(
    { host: '127.0.0.1', port: 0 },
    [createBacklogMetrics({ db: database.db, queue })],
    log,
  )
  // The database's figures are left out of an answer that they are too late for.
  const text = await until('all figures', async () => {
    const text = await (await fetch(`http://127.0.0.1:${port}/metrics`)).text()
    return ['chowder_due_instances', 'chowder_queue_waiting_jobs'].every((name) => text.includes(name)) ? text : null
  })
  await close()
  await queue.close()
  served = new Set([...text.matchAll(/^# TYPE (\S+) /gm)].map(([, name]) => present(name)))
  alerts = await readFile(alertsFile, 'utf8')
  dashboard = JSON.parse(await readFile(join(deploy, 'grafana/chowder.json'), 'utf8'))
  hasPromtool = await provideProgram('promtool', 'prometheus')
  if (!hasPromtool && process.env.CI) throw new Error('there is no promtool, and none could be installed')
})
afterAll(() => database?.drop())

/** The metrics that an expression asks for, by the names that they are served under. */
const metricsIn = (expr: string): string[] =>
  [...expr.matchAll(/\b(?:chowder|nodejs|process)_\w+/g)].map(([name]) => name.replace(/_(count|sum|bucket)$/, ''))

describe('what an operator watches', () => {
  test('every metric in the alerts and on the dashboard is served, and all of Chowder’s own are on the dashboard', () => {
    const shown = new Set(dashboard.panels.flatMap(({ targets }) => targets.flatMap(({ expr }) => metricsIn(expr))))
    const asked = [
      ...shown,
      ...alerts
        .split('\n')
        .filter((line) => !/^\s*#|action|summary/.test(line))
        .flatMap(metricsIn),
    ]
    expect(asked.filter((name) => !served.has(name))).toEqual([])
    expect([...served].filter((name) => name.startsWith('chowder_') && !shown.has(name))).toEqual([])
  })

  test('every alert says what to do, and every panel what it shows', () => {
    const count = (pattern: RegExp) => [...alerts.matchAll(pattern)].length
    expect(count(/^ +action: /gm)).toBe(count(/^ +- alert: /gm))
    expect(count(/^ +summary: /gm)).toBe(count(/^ +- alert: /gm))
    for (const { title, description } of dashboard.panels) expect(description, title).toMatch(/\.$/)
  })

  test('the alerts fire when they should and not otherwise', async ({ skip }) => {
    if (!hasPromtool) skip('there is no promtool')
    await run('promtool', ['check', 'rules', '--lint-fatal', alertsFile])
    await run('promtool', ['test', 'rules', 'alerts.test.yml'], { cwd: join(deploy, 'prometheus') })
  })

  test('what the dashboard asks is understood', async ({ skip }) => {
    if (!hasPromtool) skip('there is no promtool')
    const exprs = dashboard.panels.flatMap(({ targets }) => targets.map(({ expr }) => expr))
    const rules = exprs.map((expr, at) => ({ record: `panel:${at}`, expr: expr.replaceAll('$__rate_interval', '5m') }))
    const folder = await mkdtemp(join(tmpdir(), 'chowder-dashboard-'))
    try {
      await writeFile(join(folder, 'rules.yml'), JSON.stringify({ groups: [{ name: 'dashboard', rules }] }))
      await run('promtool', ['check', 'rules', join(folder, 'rules.yml')])
    } finally {
      await rm(folder, { recursive: true })
    }
  })
})
