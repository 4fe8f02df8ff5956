import { setTimeout as sleep } from 'node:timers/promises'
import { isAlive, type ProcessId } from './processes.ts'

const everyMs = 500

export interface Ends {
  /** Registers the gateway process of a sandbox. */
  note(id: string, gateway: ProcessId): void
  /** The ids of sandboxes whose registered gateways end, until the signal is aborted. */
  follow(signal: AbortSignal): AsyncGenerator<string>
}

/** Polls the gateways, whichever process has started or ends them. */
export function createEnds(): Ends {
  const gateways = new Map<string, ProcessId>()
  return {
    note: (id, gateway) => void gateways.set(id, gateway),
    async *follow(signal) {
      for (;;) {
        for (const [id, gateway] of gateways) {
          if (isAlive(gateway, null)) continue
          gateways.delete(id)
          yield id
        }
        await sleep(everyMs, undefined, { signal }).catch(() => signal.throwIfAborted())
      }
    },
  }
}
