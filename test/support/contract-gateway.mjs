// A gateway as far as sandboxes go: argument 1 is its port; `GET /exit/<code>` ends it, `GET /spawn` leaves a process
// behind that is in a session of its own, `GET /env` answers its environment. `GET /computes`, `/waits` (for a program
// that computes) and `/hangs` take its event loop for a while; `/eats` takes memory without end;
// `/prints` writes 40 MB of output. With argument `stubborn` SIGTERM is ignored.
import { spawn, spawnSync } from 'node:child_process'
import { createServer } from 'node:http'

const [port, manner] = process.argv.slice(2)
process.on('SIGTERM', () => manner === 'stubborn' || process.exit(0))
console.log('starting')
setInterval(() => {}, 20) // as that of OpenClaw, its event loop turns also at rest

const loopMs = 30_000
const compute = `for (const end = Date.now() + ${loopMs}; Date.now() < end; );`

const answers = {
  '/computes': () => new Function(compute)(),
  '/waits': () => spawnSync('/bin/sh', ['-c', '"$0" -e "$1"; true', process.execPath, compute]),
  '/hangs': () => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, loopMs),
  '/eats': () => {
    for (const eaten = []; ; ) eaten.push(Buffer.alloc(16 * 1024 * 1024, 1))
  },
  '/prints': () => {
    for (let i = 0; i < 640; i++) console.log('x'.repeat(65_535))
  },
  '/env': () => process.env,
  '/spawn': () => spawn('sleep', ['300'], { detached: true, stdio: 'ignore' }).pid,
  '/whoami': () => ({
    pid: process.pid,
    uid: process.getuid(),
    groups: process.getgroups(),
    cwd: process.cwd(),
    umask: process.umask(),
  }),
}

createServer(({ url }, response) => {
  const [, code] = /^\/exit\/(\d+)$/.exec(url) ?? []
  if (code) process.exit(Number(code))
  response.end(JSON.stringify(answers[url]?.() ?? null))
}).listen(Number(port), '127.0.0.1', () => console.log('ready'))
