// Loaded before OpenClaw, where the proxy asks who the agent is. The URL of the proxy has credentials then, which are
// others at each start: the environment of a container may be older.
import { readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'

const path = join(dirname(process.env.OPENCLAW_CONFIG_PATH ?? ''), 'secrets.json')
try {
  const { proxyUrl } = JSON.parse(readFileSync(path, 'utf8'))
  if (proxyUrl !== undefined) process.env.OPENCLAW_PROXY_URL = proxyUrl
} catch {
  // Without its secrets no gateway starts, and says why. Other programs of OpenClaw do.
}
