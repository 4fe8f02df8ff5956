// A fake of OpenClaw's gateway for real sandboxes: health, and turns that are answered with "Hello". How it behaves it asks
// its model provider when it starts: `readyAfterMs`, `progressEveryMs` (it says something while it starts), `exitAfterMs`
// after it became ready, and `exitCode`. It has a connection of its own to that provider, which is never opened a second time.
// A turn that asks to `compute for 3 s` or to `run for 3 s` (a program that computes) takes its event loop for that time.
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { createServer, request } from 'node:http'
import { dirname, join } from 'node:path'
import { text } from 'node:stream/consumers'

const port = Number(process.argv[process.argv.indexOf('--port') + 1])
const configPath = process.env.OPENCLAW_CONFIG_PATH
const { models } = JSON.parse(readFileSync(configPath, 'utf8'))
const { gatewayToken } = JSON.parse(readFileSync(join(dirname(configPath), 'secrets.json'), 'utf8'))
const { baseUrl } = models.providers.anthropic
process.on('SIGTERM', () => process.exit(0))

const { readyAfterMs = 0, progressEveryMs = 0, exitAfterMs, exitCode = 1 } = await (await fetch(`${baseUrl}/behaviour`)).json() // biome-ignore format: short
console.log('starting')

const channel = request(`${baseUrl}/channel`, { method: 'POST', headers: { authorization: gatewayToken } })
channel.on('error', () => {})
setInterval(() => channel.write('.'), 50)

const output = [{ type: 'message', role: 'assistant', content: [{ type: 'output_text', text: 'Hello' }] }]
const turn = { id: 'resp_1', object: 'response', model: 'openclaw', status: 'completed', output, error: null }
let isReady = false

const statusOf = (url) => (url === '/startupz' && !isReady ? 503 : 200)

// The program computes for a part of the time: a test machine has more to do.
const program = 'setInterval(() => { for (const end = Date.now() + 20; Date.now() < end; ); }, 100); setTimeout(process.exit, process.argv[1])' // biome-ignore format: short
function work(body) {
  const [, verb, seconds] = /(compute|run) for (\d+) s/.exec(body) ?? []
  if (verb === 'compute') for (const end = Date.now() + seconds * 1000; Date.now() < end; );
  if (verb === 'run') spawnSync(process.execPath, ['-e', program, String(seconds * 1000)])
}

createServer(async (request, response) => {
  const isTurn = request.url === '/v1/responses'
  if (isTurn) work(await text(request))
  response.writeHead(statusOf(request.url), { 'content-type': 'application/json' })
  response.end(JSON.stringify(isTurn ? turn : {}))
}).listen(port, '127.0.0.1')

let progress = 0
const timer = progressEveryMs > 0 && setInterval(() => console.log(`progress ${++progress}`), progressEveryMs)
setTimeout(() => {
  clearInterval(timer)
  isReady = true
  console.log('ready')
  if (exitAfterMs === undefined) return
  setTimeout(() => {
    console.log('out of lobsters')
    process.exit(exitCode)
  }, exitAfterMs)
}, readyAfterMs)
