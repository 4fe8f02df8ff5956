import { createServer } from 'node:http'
import { expect, onTestFinished, test } from 'vitest'
import { createDockerClient } from '#sandbox/docker/docker-client.ts'
import { listenLocally } from '../../support/local-server.ts'

test.each([
  ['that answers', 200, null],
  ['that refuses a ping, as a proxy before dockerd may', 403, null],
  ['whose proxy does not reach it', 503, /^dockerd cannot be reached at tcp:/],
])('a dockerd %s: is it away?', async (_, status, expected) => {
  const dockerd = await listenLocally(createServer((_request, answer) => answer.writeHead(status).end('{}')))
  onTestFinished(() => dockerd.close())
  const client = createDockerClient({ host: dockerd.url.replace('http', 'tcp'), tls: null })
  const outage = await client.outage(AbortSignal.timeout(5000))
  if (expected === null) expect(outage).toBeNull()
  else expect(outage).toMatch(expected)
})
