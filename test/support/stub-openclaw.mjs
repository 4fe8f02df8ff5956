// A fake of OpenClaw's gateway for local sandboxes: health, and turns that are answered with "Hello". How it behaves stands
// in `behaviour.json` beside it when it starts: `readyAfterMs`, `progressEveryMs` (it says something while it starts),
// `exitAfterMs` after it became ready, and `exitCode`.
import { readFileSync } from 'node:fs'
import { createServer } from 'node:http'

const port = Number(process.argv[process.argv.indexOf('--port') + 1])
const behaviour = JSON.parse(readFileSync(new URL('behaviour.json', import.meta.url), 'utf8'))
const { readyAfterMs = 0, progressEveryMs = 0, exitAfterMs = null, exitCode = 1 } = behaviour
process.on('SIGTERM', () => process.exit(0))

const output = [{ type: 'message', role: 'assistant', content: [{ type: 'output_text', text: 'Hello' }] }]
const turn = { id: 'resp_1', object: 'response', model: 'openclaw', status: 'completed', output, error: null }
let isReady = false

const statusOf = (url) => (url === '/startupz' && !isReady ? 503 : 200)

createServer((request, response) => {
  response.writeHead(statusOf(request.url), { 'content-type': 'application/json' })
  response.end(JSON.stringify(request.url === '/v1/responses' ? turn : {}))
}).listen(port, '127.0.0.1')

console.log('starting')
let progress = 0
const timer = progressEveryMs > 0 && setInterval(() => console.log(`progress ${++progress}`), progressEveryMs)
setTimeout(() => {
  clearInterval(timer)
  isReady = true
  console.log('ready')
  if (exitAfterMs === null) return
  setTimeout(() => {
    console.log('out of lobsters')
    process.exit(exitCode)
  }, exitAfterMs)
}, readyAfterMs)
