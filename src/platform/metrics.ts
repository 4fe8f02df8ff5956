import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from '@prometheus-io/client'
import pTimeout from 'p-timeout'
import { explainListening } from './listen-fault.ts'
import { type Logger, logFirstAndRecovery } from './log.ts'

const registry = new Registry()
const registers = [registry]

// No label names an instance, an organization or a key: there may be thousands of them, and they are confidential.

export const buildInfo = new Gauge({
  name: 'chowder_build_info',
  help: 'Always 1: its labels are the version and the commit of this process, and its default release of OpenClaw.',
  labelNames: ['version', 'commit', 'release'] as const,
  registers,
})

export const requestDuration = new Histogram({
  name: 'chowder_http_request_duration_seconds',
  help: 'Requests by route and status, from their header to the last byte of the answer; client_left: the client left.',
  labelNames: ['method', 'route', 'status'] as const,
  buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60, 300],
  registers,
})

export const turnAddedDuration = new Histogram({
  name: 'chowder_turn_added_seconds',
  help: 'Time that Chowder adds to a turn: before it asks the gateway, and after the answer or its header has come.',
  buckets: [0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5],
  registers,
})

export const openStreams = new Gauge({
  name: 'chowder_open_streams',
  help: 'Answers that are streamed to clients.',
  registers,
})

export const inFlight = new Gauge({
  name: 'chowder_in_flight',
  help: 'Turns, WebSockets, transfers of files, lists, and bytes of bodies that are in flight in this process.',
  labelNames: ['kind'] as const,
  registers,
})

export const relayCalls = new Counter({
  name: 'chowder_relay_calls_total',
  help: 'Calls of agents to providers by the status of the answer; `relay …`: refused by the relay; cut: by a provider.',
  labelNames: ['provider', 'status'] as const,
  registers,
})

export const relayOpenCalls = new Gauge({
  name: 'chowder_relay_open_calls',
  help: 'Calls of agents to model providers that are open.',
  registers,
})

export const relayAddedDuration = new Histogram({
  name: 'chowder_relay_added_seconds',
  help: 'Time that the relay takes to send a call to its provider, without the pause of its key.',
  buckets: [0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1],
  registers,
})

export const relayWaits = new Histogram({
  name: 'chowder_relay_wait_seconds',
  help: 'How long calls waited because their provider had asked to wait with their key.',
  labelNames: ['provider'] as const,
  buckets: [0.1, 0.5, 1, 2.5, 5, 10, 20],
  registers,
})

export const egressConnections = new Counter({
  name: 'chowder_egress_connections_total',
  help: 'Connections that agents asked the egress proxy for: allowed, reported, or blocked for a reason.',
  labelNames: ['verdict', 'reason'] as const,
  registers,
})

export const egressOpen = new Gauge({
  name: 'chowder_egress_open',
  help: 'Connections of agents through the egress proxy that are open.',
  registers,
})

export const egressBytes = new Counter({
  name: 'chowder_egress_bytes_total',
  help: 'Bytes of agents through the egress proxy, sent to hosts and received from them.',
  labelNames: ['direction'] as const,
  registers,
})

export const egressUnrecorded = new Counter({
  name: 'chowder_egress_unrecorded_total',
  help: 'Hosts that agents asked for and that are not in the list of their instance: too many, or the database was away.',
  registers,
})

export const usageLost = new Counter({
  name: 'chowder_usage_lost_total',
  help: 'Calls of agents that have ended and could not be written: the database was away for too long.',
  registers,
})

export const budgetRefusals = new Counter({
  name: 'chowder_budget_refusals_total',
  help: 'Calls and turns of agents that budgets refused: used_up, unattended or unpriced.',
  labelNames: ['reason'] as const,
  registers,
})

export const stepDuration = new Histogram({
  name: 'chowder_reconcile_step_duration_seconds',
  help: 'Steps of reconciles; left: the intent changed, the lease was lost or the worker ended.',
  labelNames: ['step', 'outcome'] as const,
  buckets: [0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300],
  registers,
})

export const timeToRunning = new Histogram({
  name: 'chowder_time_to_running_seconds',
  help: 'From the commit of a create, a start or a restart until the gateway answers.',
  labelNames: ['intent'] as const,
  buckets: [1, 2.5, 5, 10, 15, 20, 30, 45, 60, 90, 120, 300, 900],
  registers,
})

export const leasesLost = new Counter({
  name: 'chowder_leases_lost_total',
  help: 'Leases that were lost before their holder had finished.',
  registers,
})

export const sandboxRestarts = new Counter({
  name: 'chowder_sandbox_restarts_total',
  help: 'Gateways that were started again without a request.',
  labelNames: ['reason'] as const,
  registers,
})

export const hostDiskFree = new Gauge({
  name: 'chowder_host_disk_free_bytes',
  help: 'What is free on the disk of the data folder.',
  registers,
})

export const hostDiskFloor = new Gauge({
  name: 'chowder_host_disk_floor_bytes',
  help: 'Below this, only the control plane writes: 1 GiB, or a tenth of a small disk.',
  registers,
})

export const diskStops = new Counter({
  name: 'chowder_disk_stops_total',
  help: 'Agents that were stopped because their files had reached their limit, or their host had almost no room.',
  registers,
})

export const driverCallDuration = new Histogram({
  name: 'chowder_driver_call_duration_seconds',
  help: 'Calls of the sandbox driver of a region by how they ended: ok, absent, no_room, unavailable, aborted, failed.',
  labelNames: ['region', 'call', 'outcome'] as const,
  buckets: [0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 10, 30, 60],
  registers,
})

/** Metrics that are read at each scrape. */
export interface MetricSource {
  /** In Prometheus' text format. */
  metrics(): Promise<string>
}

/** The metrics of a slower source are omitted. */
const sourceTimeoutMs = 3000

/**
 * Serves `GET /metrics`, with the metrics of this process and of `sources`, and `GET /healthz`, which answers while the
 * process lives. Throws StartupError when it cannot listen there.
 */
export async function serveMetrics(
  { host, port }: { host: string; port: number },
  sources: readonly MetricSource[],
  log: Logger,
): Promise<{ port: number; close(): Promise<void> }> {
  const own = new Registry()
  collectDefaultMetrics({ register: own })
  const watched = [own, registry, ...sources].map((source) => ({
    source,
    ...logFirstAndRecovery(log, 'a source of metrics failed', 'the source of metrics works again'),
  }))

  async function text(): Promise<string> {
    const texts = await Promise.all(
      watched.map(async ({ source, failed, recovered }) => {
        try {
          const answer = await pTimeout(source.metrics(), { milliseconds: sourceTimeoutMs })
          recovered()
          return answer
        } catch (error) {
          failed(error)
          return ''
        }
      }),
    )
    return texts.join('')
  }

  const server = createServer((request, response) => {
    if (request.method === 'GET' && request.url === '/healthz') return void response.end('alive\n')
    if (request.method !== 'GET' || request.url !== '/metrics') {
      return void response
        .writeHead(404, { 'content-type': 'text/plain' })
        .end('There is GET /metrics and GET /healthz.\n')
    }
    void text().then((answer) => response.writeHead(200, { 'content-type': registry.contentType }).end(answer))
  })
  server.listen(port, host)
  await once(server, 'listening').catch((error: unknown) => {
    throw explainListening(error, { host, port, hostVariable: 'METRICS_PORT', portVariable: 'METRICS_PORT' })
  })
  return {
    port: (server.address() as AddressInfo).port,
    async close() {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}
