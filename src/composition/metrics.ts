import { type MetricSource, serveMetrics } from '#platform/metrics.ts'
import type { Startup } from './startup.ts'

/** Serves the metrics of this process and of `sources`, if METRICS_PORT is set. */
export async function openMetrics({ config, log, drain }: Startup, sources: readonly MetricSource[]): Promise<void> {
  if (config.METRICS_PORT === undefined) return
  const { port, close } = await serveMetrics({ host: config.METRICS_HOST, port: config.METRICS_PORT }, sources, log)
  drain.add('metrics', close)
  log.info({ port }, 'metrics are served at /metrics')
}
