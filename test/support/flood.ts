import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'

/**
 * Starts a process that sends requests to a port of 127.0.0.1 without waiting for answers, over so many connections,
 * each opened anew when it is closed. Resolves once it has begun; the caller kills it.
 */
export async function startFlood(port: number, path: string, connections: number): Promise<ChildProcess> {
  const program = `
    const net = require('node:net')
    const data = Buffer.from('GET ${path} HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n'.repeat(2000))
    const open = () => {
      const socket = net.connect(${port}, '127.0.0.1', () => socket.write(data))
      socket.on('error', () => {}).on('data', () => {}).on('close', open)
    }
    for (let opened = 0; opened < ${connections}; opened += 1) open()
    console.log('begun')`
  const flood = spawn(process.execPath, ['-e', program], { stdio: ['ignore', 'pipe', 'inherit'] })
  await once(flood.stdout, 'data')
  return flood
}
