import { defaultRelease } from '#openclaw/releases.ts'
import { buildInfo, type MetricSource, serveMetrics } from '#platform/metrics.ts'
import { commit, version } from '#platform/version.ts'
import type { Startup } from './startup.ts'

/** Parses a setting such as `9464` or `0.0.0.0:9464`. */
function addressOf(setting: string): { host: string; port: number } {
  const at = setting.lastIndexOf(':')
  const host = at < 0 ? '127.0.0.1' : setting.slice(0, at).replace(/^\[|\]$/g, '')
  return { host, port: Number(setting.slice(at + 1)) }
}

/** Serves the metrics of this process and of `sources`, if METRICS_PORT is set. */
export async function openMetrics({ config, log, drain }: Startup, sources: readonly MetricSource[]): Promise<void> {
  if (config.METRICS_PORT === undefined) return
  buildInfo.set({ version, commit, release: defaultRelease }, 1)
  const { port, close } = await serveMetrics(addressOf(config.METRICS_PORT), sources, log)
  drain.add('metrics', close)
  log.info({ port }, 'metrics are served at /metrics')
}
