import type { DockerClient } from './docker-client.ts'
import { readOutput } from './output.ts'

const deadlineMs = 15_000
const maxBytes = 64 * 1024

async function* only(bytes: Buffer): AsyncGenerator<Buffer, void> {
  yield bytes
}

/** The last lines that a container has written, at most 64 KiB of them; empty when there is no container. */
export async function lastLines(client: DockerClient, container: string, lines: number): Promise<string> {
  const chunks = await client.callUnless([404], AbortSignal.timeout(deadlineMs), async (docker, abortSignal) => {
    const logs = await docker.getContainer(container).logs({ stdout: true, stderr: true, tail: lines, abortSignal })
    const found: Buffer[] = []
    for await (const { bytes } of readOutput(only(logs))) found.push(bytes)
    return found
  })
  const text = Buffer.concat(chunks ?? [])
    .subarray(-maxBytes)
    .toString()
  return text.replace(/\n$/, '').split('\n').slice(-lines).join('\n')
}
