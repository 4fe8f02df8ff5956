import type Docker from 'dockerode'
import { poll } from '#platform/poll.ts'
import { createFilesSession, type FilesSession } from '#sandbox/container/files-session.ts'
import { node, nodeFlags, programs } from '#sandbox/container/layout.ts'
import { SandboxUnavailableError } from '#sandbox/driver.ts'
import { type DockerClient, inBody } from './docker-client.ts'
import { startProgram } from './exec.ts'
import type { Images } from './images.ts'
import { filesContainer, labels, sandboxName } from './profile.ts'

const timeoutMs = 20_000
const retryMs = 200

export interface FilesContainerOptions {
  client: DockerClient
  images: Images
  installation: string
  /** The container of a sandbox. Throws SandboxAbsentError when there is none. */
  inspect(id: string, signal: AbortSignal): Promise<Docker.ContainerInspectInfo>
}

/**
 * Starts the files program of a sandbox in a container beside the sandbox, which is created unless it exists. Throws
 * SandboxUnavailableError when the container does not start within 20 s.
 */
export async function openFilesSession(
  id: string,
  { client, images, installation, inspect }: FilesContainerOptions,
  signal: AbortSignal,
): Promise<FilesSession> {
  let name = ''
  async function attempt(): Promise<FilesSession | null> {
    const { Image, Config } = await inspect(id, signal)
    // The image with the programs of this Chowder if it exists, otherwise the image of the sandbox.
    const current = await images.nameOf(Config.Labels[labels.release] ?? '').catch(() => null)
    const image = current && (await images.exists(current, signal)) ? current : Image
    name = `${sandboxName(id)}-files-${image.slice(-12)}`
    const program = { Cmd: [node, ...nodeFlags, `${programs}/files-program.js`] }
    const running = await startProgram(client, name, program, signal)
    if (running) return createFilesSession(running.socket)
    // 404: the sandbox was deleted meanwhile, or this container has just ended. 409: another call was faster.
    await client.callUnless([404, 409], signal, (docker, abortSignal) =>
      docker.createContainer({ ...inBody(filesContainer(installation, id, name, image, Config.User)), abortSignal }),
    )
    await client.callUnless([304, 404, 409], signal, (docker, abortSignal) =>
      docker.getContainer(name).start({ abortSignal }),
    )
    return null
  }
  const pauseMs = (checks: number) => (checks === 1 ? 0 : retryMs)
  const session = await poll(attempt, { pauseMs, timeoutMs, signal })
  if (!session) throw new SandboxUnavailableError(new Error(`the container ${name} does not start`))
  return session
}
