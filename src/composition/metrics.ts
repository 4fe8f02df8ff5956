import { defaultRelease } from '#openclaw/releases.ts'
import { buildInfo, type MetricSource, serveMetrics } from '#platform/metrics.ts'
import { commit, version } from '#platform/version.ts'
import type { Startup } from './startup.ts'

/** Serves the metrics of this process and of `sources`, if METRICS_PORT is set. */
export async function openMetrics({ config, log, drain }: Startup, sources: readonly MetricSource[]): Promise<void> {
  if (config.METRICS_PORT === undefined) return
  buildInfo.set({ version, commit, release: defaultRelease }, 1)
  const { port, close } = await serveMetrics({ host: config.METRICS_HOST, port: config.METRICS_PORT }, sources, log)
  drain.add('metrics', close)
  log.info({ port }, 'metrics are served at /metrics')
}
