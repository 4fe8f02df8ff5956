import { createServer } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import { answerMessages, listen } from './program.ts'

/** Asks `/healthz` of a port every 10 ms between `GET /begin` and `GET /end`, which answers how long it took. */
answerMessages(async ({ port }: { port: number }) => {
  let tookMs: number[] = []
  let isWatching = false
  let watch = Promise.resolve()

  async function ask(): Promise<void> {
    while (isWatching) {
      const sentAt = performance.now()
      await (await fetch(`http://127.0.0.1:${port}/healthz`)).text()
      tookMs.push(performance.now() - sentAt)
      await sleep(10)
    }
  }
  const server = createServer(async (request, reply) => {
    isWatching = request.url === '/begin'
    if (isWatching) {
      tookMs = []
      watch = ask()
      reply.end()
      return
    }
    await watch
    const sorted = tookMs.sort((a, b) => a - b)
    const at = (share: number) => Math.round(sorted[Math.floor((sorted.length - 1) * share)] ?? 0)
    reply.end(`/healthz p50 ${at(0.5)} ms, p99 ${at(0.99)} ms, most ${at(1)} ms`)
  })
  return { port: await listen(server) }
})
