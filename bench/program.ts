import { fork } from 'node:child_process'
import { once } from 'node:events'
import type { Server } from 'node:http'
import type { AddressInfo } from 'node:net'

const stopTimeoutMs = 10_000

/** One of the bench's own programs in a process of its own, as everything that is measured. */
export interface Program {
  /** Sends a message and resolves to the answer. One at a time. */
  ask<Answer>(message: unknown): Promise<Answer>
  stop(): Promise<void>
}

/** Starts a program of this folder by its file's URL. */
export function startProgram(url: string): Program {
  const child = fork(new URL(url), { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
  const ended = once(child, 'exit')
  return {
    async ask<Answer>(message: unknown) {
      child.send(message as object)
      const answered = once(child, 'message').then(([answer]) => answer as Answer)
      const lost = ended.then(([code, signal]) => {
        throw new Error(`${url} ended with ${code ?? signal}`)
      })
      return Promise.race([answered, lost])
    },
    async stop() {
      if (child.exitCode !== null || child.signalCode !== null) return
      child.kill()
      const deadline = setTimeout(() => child.kill('SIGKILL'), stopTimeoutMs)
      await ended
      clearTimeout(deadline)
    },
  }
}

/**
 * The other side of `ask`: answers each message by what `answer` resolves to. A failure ends the process, as does the
 * end of the process that asks, which may be killed: an attacker would go on for ever.
 */
export function answerMessages<Message>(answer: (message: Message) => Promise<unknown>): void {
  process.once('disconnect', () => process.exit(1))
  process.on('message', async (message: Message) => {
    process.send?.(await answer(message))
  })
}

/** Listens on loopback, on a port that the system chooses. */
export async function listen(server: Server): Promise<number> {
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return (server.address() as AddressInfo).port
}
