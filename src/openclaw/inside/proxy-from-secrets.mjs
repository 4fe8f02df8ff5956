// Loaded before OpenClaw when the proxy authenticates agents. The URL of the proxy then has credentials that differ at
// each start, and the environment of a container may be older.
import { readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'

const path = join(dirname(process.env.OPENCLAW_CONFIG_PATH ?? ''), 'secrets.json')
try {
  const { proxyUrl } = JSON.parse(readFileSync(path, 'utf8'))
  if (proxyUrl !== undefined) process.env.OPENCLAW_PROXY_URL = proxyUrl
} catch {
  // Without its secrets no gateway starts; it prints the reason. Other programs of OpenClaw start.
}
