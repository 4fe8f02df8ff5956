import { StartupError } from '#errors/startup-error.ts'

/** An address that a process listens on, and the variables that set it. */
export interface ListenAddress {
  host: string
  port: number
  hostVariable: string
  portVariable: string
}

/** Explains in one sentence why a process cannot listen, and the remedy. Returns an unrelated error unchanged. */
export function explainListening(error: unknown, { host, port, hostVariable, portVariable }: ListenAddress): unknown {
  const sentences: Record<string, string> = {
    EADDRINUSE: `Port ${port} on ${host} is taken by another program. Set ${portVariable} to a free one (each process needs its own), or end that program.`,
    EADDRNOTAVAIL: `${host} is no address of this machine. Set ${hostVariable} to one of its addresses, to 127.0.0.1 for this machine alone, or to 0.0.0.0 for all.`,
    EACCES: `Only root may listen on port ${port}. Set ${portVariable} to a port from 1024 on.`,
    ENOTFOUND: `The host ${host} is not known. Set ${hostVariable} to an address of this machine.`,
    EAI_AGAIN: `The host ${host} could not be looked up. Set ${hostVariable} to an address of this machine.`,
  }
  const sentence = sentences[String((error as NodeJS.ErrnoException).code)]
  return sentence === undefined ? error : new StartupError(sentence, { cause: error })
}
