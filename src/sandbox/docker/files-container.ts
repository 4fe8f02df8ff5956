import type Docker from 'dockerode'
import { poll } from '#platform/poll.ts'
import { SandboxUnavailableError } from '#sandbox/driver.ts'
import { type DockerClient, inBody } from './docker-client.ts'
import { startProgram } from './exec.ts'
import { createFilesSession, type FilesSession } from './files-session.ts'
import type { Images } from './image.ts'
import { filesContainer, labels, node, nodeFlags, programs, sandboxName } from './profile.ts'

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
 * Starts the files program of a sandbox, in the container for it beside the sandbox's own, which is made if it does not
 * exist. Throws SandboxUnavailableError when the container does not start in 20 s.
 */
export async function openFilesSession(
  id: string,
  { client, images, installation, inspect }: FilesContainerOptions,
  signal: AbortSignal,
): Promise<FilesSession> {
  let name = ''
  async function attempt(): Promise<FilesSession | null> {
    const { Image, Config } = await inspect(id, signal)
    // The programs of this version of Chowder if there is an image of it, whatever image the sandbox was made from.
    const current = await images.nameOf(Config.Labels[labels.release] ?? '').catch(() => null)
    const image = current && (await images.exists(current, signal)) ? current : Image
    name = `${sandboxName(id)}-files-${image.slice(-12)}`
    const program = { Cmd: [node, ...nodeFlags, `${programs}/files-program.js`] }
    const running = await startProgram(client, name, program, signal)
    if (running) return createFilesSession(running.socket)
    // 404: the sandbox was deleted meanwhile, or this container has just ended. 409: another call was quicker.
    await client.callUnless([404, 409], signal, (docker, abortSignal) =>
      docker.createContainer({ ...inBody(filesContainer(installation, id, name, image)), abortSignal }),
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
