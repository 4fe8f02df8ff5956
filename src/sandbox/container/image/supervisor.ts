import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { constants } from 'node:os'
import { type Admission, createForwarder } from './forwarder.ts'

/** The settings of the container's first program: JSON in its first argument. The command of the gateway follows. */
export interface SupervisorSettings {
  /** The port on which the gateway listens, on loopback. */
  gatewayPort: number
  /** The port on which the forwarder listens, on every address of the container. */
  port: number
  admission: Admission
}

const [text, command, ...args] = process.argv.slice(2)
if (!text || !command) throw new Error('usage: supervisor <settings> <command> [<argument> ...]')
const { gatewayPort, port, admission }: SupervisorSettings = JSON.parse(text)

process.umask(0o077)
// Before the gateway starts, because its agent could occupy the port.
await once(createForwarder(gatewayPort, admission).listen(port, '0.0.0.0'), 'listening')
const gateway = spawn(command, args, { stdio: 'inherit' })
for (const name of ['SIGTERM', 'SIGINT'] as const) process.on(name, () => gateway.kill(name))
gateway.on('error', (error) => {
  console.error(error.message)
  process.exit(127)
})
// The container ends with its gateway, and so does every other process in it.
gateway.on('exit', (code, signal) => process.exit(signal ? 128 + constants.signals[signal] : (code ?? 1)))
