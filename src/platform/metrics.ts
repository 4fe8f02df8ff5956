import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from '@prometheus-io/client'
import { type Logger, logFirstAndRecovery } from './log.ts'
import { StartupError } from './startup-error.ts'

const registry = new Registry()
const registers = [registry]

// No label names an instance, an organization or a key: there may be thousands of them, and they are nobody's business.

export const requestDuration = new Histogram({
  name: 'chowder_http_request_duration_seconds',
  help: 'Requests by route and status, from their head to the last byte of the answer; client_left: nobody read it.',
  labelNames: ['method', 'route', 'status'] as const,
  buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60, 300],
  registers,
})

export const turnAddedDuration = new Histogram({
  name: 'chowder_turn_added_seconds',
  help: 'What Chowder itself adds to a turn: before the gateway is asked, and after its answer, or its head, is there.',
  buckets: [0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5],
  registers,
})

export const openStreams = new Gauge({
  name: 'chowder_open_streams',
  help: 'Answers that are being streamed to clients.',
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
  help: 'From the commit of a create or a start until the gateway answers.',
  labelNames: ['intent'] as const,
  buckets: [1, 2.5, 5, 10, 15, 20, 30, 45, 60, 90, 120, 300, 900],
  registers,
})

export const leasesLost = new Counter({
  name: 'chowder_leases_lost_total',
  help: 'Rows that a holder had to let go of before it was done.',
  registers,
})

export const sandboxRestarts = new Counter({
  name: 'chowder_sandbox_restarts_total',
  help: 'Gateways that were started again though nobody asked for it.',
  labelNames: ['reason'] as const,
  registers,
})

export const driverCallDuration = new Histogram({
  name: 'chowder_driver_call_duration_seconds',
  help: 'Calls of the sandbox driver by how they ended: ok, absent, no_room, unavailable, aborted, failed.',
  labelNames: ['call', 'outcome'] as const,
  buckets: [0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 10, 30, 60],
  registers,
})

/** For what is only known by asking: read anew each time Prometheus asks. */
export interface MetricSource {
  /** In Prometheus' text format. */
  metrics(): Promise<string>
}

/** A source that does not answer by then is left out: the others are wanted all the more. */
const sourceTimeoutMs = 3000

/**
 * Serves on a port of its own, and nothing else: `GET /metrics`, this process's figures and those of `sources`, and
 * `GET /healthz`, which answers as long as its event loop turns. Throws StartupError when the port is taken.
 */
export async function serveMetrics(
  { host, port }: { host: string; port: number },
  sources: readonly MetricSource[],
  log: Logger,
): Promise<{ port: number; close(): Promise<void> }> {
  const own = new Registry()
  collectDefaultMetrics({ register: own })
  const healths = [own, registry, ...sources].map((source) => ({
    source,
    ...logFirstAndRecovery(log, 'a source of metrics failed', 'the source of metrics works again'),
  }))

  async function text(): Promise<string> {
    const texts = await Promise.all(
      healths.map(({ source, failed, recovered }) => {
        const late = sleep(sourceTimeoutMs, undefined, { ref: false }).then(() => {
          throw new Error(`no answer in ${sourceTimeoutMs} ms`)
        })
        return Promise.race([source.metrics(), late]).then(
          (answer) => {
            recovered()
            return answer
          },
          (error: unknown) => {
            failed(error)
            return ''
          },
        )
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
  await once(server, 'listening').catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'EADDRINUSE') throw error
    throw new StartupError(
      `METRICS_PORT ${port} on ${host} is taken by another program. Set it to a free one: each process of Chowder needs its own.`,
    )
  })
  return {
    port: (server.address() as AddressInfo).port,
    async close() {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}
