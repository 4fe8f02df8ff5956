import { addAbortSignal, type Readable } from 'node:stream'
import type { DockerClient } from './docker-client.ts'
import { labels } from './profile.ts'

interface DockerEvent {
  Actor?: { Attributes?: Record<string, string> }
}

/** The ids of sandboxes whose containers end, until the signal is aborted or dockerd ends the stream. */
export async function* followEnds(
  client: DockerClient,
  installation: string,
  signal: AbortSignal,
): AsyncGenerator<string> {
  const stream = (await client.call(signal, (docker, abortSignal) =>
    docker.getEvents({
      filters: {
        type: ['container'],
        event: ['die'],
        label: [`${labels.installation}=${installation}`, `${labels.role}=sandbox`],
      },
      abortSignal,
    }),
  )) as Readable
  let text = ''
  try {
    for await (const chunk of addAbortSignal(signal, stream.setEncoding('utf8'))) {
      const lines = `${text}${chunk}`.split('\n')
      text = lines.pop() ?? ''
      for (const line of lines) {
        const id = (JSON.parse(line) as DockerEvent).Actor?.Attributes?.[labels.instance]
        if (id !== undefined) yield id
      }
    }
  } catch {
    signal.throwIfAborted() // otherwise dockerd has cut the stream: the next call reports why it is unreachable
  }
}
