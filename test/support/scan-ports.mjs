// node scan-ports.mjs <host>,… <port>|<from>-<to>,…: which ports take a connection, as {"<host>": [<port>, …]}.
import { connect } from 'node:net'

const [hosts = '', ports = ''] = process.argv.slice(2)
const atOnce = 2000
const waitMs = 500

const targets = ports.split(',').flatMap((part) => {
  const [from, to = from] = part.split('-').map(Number)
  return Array.from({ length: to - from + 1 }, (_, index) => from + index)
})

const isOpen = (host, port) =>
  new Promise((resolve) => {
    const socket = connect({ host, port })
    const end = (answer) => {
      clearTimeout(timer)
      socket.destroy()
      resolve(answer)
    }
    const timer = setTimeout(() => setImmediate(end, false), waitMs) // what came while this process slept is seen first
    socket.on('connect', () => end(true)).on('error', () => end(false))
  })

const found = {}
for (const host of hosts.split(',')) {
  const left = targets.values()
  const open = []
  const scan = async () => {
    for (const port of left) if (await isOpen(host, port)) open.push(port)
  }
  await Promise.all(Array.from({ length: atOnce }, scan))
  found[host] = open.sort((a, b) => a - b)
}
console.log(JSON.stringify(found))
