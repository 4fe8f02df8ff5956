import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'

const source = join(import.meta.dirname, '../../src')

/** Who names the address to which a file connects: never a customer, but where that is what it is for. */
const addresses: Record<
  string,
  'its sandbox driver' | 'the operator' | 'Chowder' | 'an agent, within its policy' | 'a customer, checked'
> = {
  'turns/gateway-pool.ts': 'its sandbox driver',
  'openclaw/gateway/gateway-socket.ts': 'its sandbox driver',
  'openclaw/gateway/health.ts': 'its sandbox driver',
  'openclaw/skills/clawhub-http.ts': 'the operator',
  'openclaw/models/provider-key.ts': 'the operator',
  'egress/reach.ts': 'an agent, within its policy',
  'egress/forward.ts': 'an agent, within its policy',
  'egress/checked-agent.ts': 'a customer, checked',
  'api/webhooks/send.ts': 'a customer, checked',
  'relay/server.ts': 'the operator',
  'relay/upstreams.ts': 'the operator',
  'api/subscription/stripe.ts': 'the operator',
  'composition/database.ts': 'the operator',
  'http/rate-limit.ts': 'the operator',
  'lifecycle/queue/queue-backend.ts': 'the operator',
  'sandbox/docker/docker-client.ts': 'the operator',
  'docker-proxy/dockerd.ts': 'the operator',
  'sandbox/kubernetes/requests.ts': 'the operator',
  'database/embedded-postmaster.ts': 'Chowder',
  'openclaw/release/compile-cache.ts': 'Chowder',
  'sandbox/container/image/forwarder.ts': 'Chowder',
}

const clients = [
  /(?<![.\w])fetch\(/,
  /import (?!type).*\b(request|get|connect|createConnection|Agent|Pool|Client|Socket)\b.* from '(undici|node:(http|https|http2|net|tls|dgram))'/,
  /import (?!type).* from '(ws|pg|ioredis|dockerode|stripe)'/,
  /import (http|https|http2|net|tls|dgram)\b.* from 'node:/,
  /new (WebSocket|EventSource)\(/,
  /await import\('(undici|ws|pg|ioredis|dockerode|stripe)'\)/,
]
/** These use what the import offers, and open no connection of their own. */
const harmless = new Set([
  'database/connection-fault.ts', // error classes
  'database/embedded.ts', // the same database
  'http/body-deadlines.ts', // sockets of clients
  'sandbox/kubernetes/forward.ts', // sockets of its own processes
  'sandbox/local/way-out.ts', // sockets of agents
  'lifecycle/attempt/health.ts', // a text that runs in the sandbox
])

test('A5: every file that opens a connection is known, and no customer names its address', () => {
  const found = readdirSync(source, { recursive: true, encoding: 'utf8' })
    .filter((path) => path.endsWith('.ts'))
    .filter((path) => {
      const text = readFileSync(join(source, path), 'utf8')
      return clients.some((client) => client.test(text))
    })
  expect(found.filter((path) => !harmless.has(path)).sort()).toEqual(Object.keys(addresses).sort())
})
