import { type HostRule, hostAndPort, parseHostRule, readHost } from '#egress/hosts.ts'
import type { Destination } from '#egress/policy.ts'
import { StartupError } from '#errors/startup-error.ts'
import type { Config } from '#settings/config.ts'
import { entriesOf } from '#settings/exposure.ts'

const defaultPorts: Record<string, number> = { 'http:': 80, 'https:': 443 }

/** Reads EGRESS_ALLOWED_HOSTS. Throws StartupError. */
function readAllowedHosts(text: string | undefined): HostRule[] {
  return entriesOf(text).map((entry) => {
    const rule = parseHostRule(entry, { ranges: true })
    if (rule) return rule
    throw new StartupError(
      `EGRESS_ALLOWED_HOSTS has ${JSON.stringify(entry)}, which is no host. Write hosts as mattermost.internal:8065, ` +
        '*.internal:443, 10.1.2.3:8080 or 10.0.0.0/8:443, separated by commas.',
    )
  })
}

/** The host and the port of a URL. */
export function placeOf(url: string): Destination | null {
  const { protocol, hostname, port } = new URL(url)
  const host = readHost(hostname)
  return host === null ? null : { host, port: port === '' ? (defaultPorts[protocol] ?? 0) : Number(port) }
}

/** The operator's registry, from which agents install skills. */
function registryRule({ CLAWHUB_REGISTRY }: Config): HostRule[] {
  const place = CLAWHUB_REGISTRY === undefined ? null : placeOf(CLAWHUB_REGISTRY)
  const rule = place && parseHostRule(hostAndPort(place.host, place.port), { ranges: true })
  return rule ? [rule] : []
}

/** The hosts that agents may reach although they are not public. Throws StartupError. */
export const operatorHosts = (config: Config): HostRule[] => [
  ...readAllowedHosts(config.EGRESS_ALLOWED_HOSTS),
  ...registryRule(config),
]
