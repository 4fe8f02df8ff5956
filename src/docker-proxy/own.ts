import type { TSchema } from '@sinclair/typebox'
import type Docker from 'dockerode'
import { imageName } from '#sandbox/container/image.ts'
import { bridgeOf } from '#sandbox/docker/network.ts'
import { labels, type Role } from '#sandbox/docker/profile.ts'
import type { Call, CallRequest, Networks, Share } from './call.ts'
import type { Dockerd } from './dockerd.ts'
import { Refusal } from './refusal.ts'
import { filesShape, firewallShape, roomShape, sandboxShape } from './shapes.ts'

const uuid = '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}'
const files = '-files-[0-9a-f]{12}'
const room = '-room'
const sandbox = `chowder-(?<id>${uuid})`

/** Patterns of Chowder's names, and of the ids of dockerd. */
export const patterns = {
  sandbox,
  container: `(?<container>chowder-${uuid}(?:${files}|${room})?|[0-9a-f]{64})`,
  execution: '(?<execution>[0-9a-f]{64})',
  image: `(?<image>${imageName.source.slice(1, -1)})`,
}

const idIn = (pattern: string, name: unknown) => new RegExp(`^${pattern}$`).exec(String(name))?.groups?.id

/** The instance's id in the name of a sandbox's container or volume. */
export const sandboxIdIn = (name: unknown) => idIn(sandbox, name)
/** The instance's id in the name of a separate room's container. */
const roomIdIn = (name: unknown) => idIn(sandbox + room, name)
/** The instance's id in the name of a files container. */
export const filesIdIn = (name: unknown) => idIn(sandbox + files, name)

/** Asks dockerd whether an object belongs to Chowder. Every method throws a Refusal for foreign objects. */
export function createOwn(dockerd: Dockerd, share: Share, networks: Networks) {
  /** A container of Chowder's in one of these roles. */
  async function container(
    reference: string,
    roles: Role[],
    signal: AbortSignal,
  ): Promise<Docker.ContainerInspectInfo> {
    const found = await dockerd.ask<Docker.ContainerInspectInfo>(`/containers/${reference}/json`, signal)
    if (roles.some((role) => found.Config.Labels[labels.role] === role)) return found
    throw new Refusal(403, `only for containers that Chowder has made as ${roles.join(' or ')}`)
  }

  return {
    container,
    /** Passes a call on to a container in one of these roles, by its id. */
    forward:
      (roles: Role[], path: string, deadlineOf?: (query: CallRequest['query']) => number): Call['decide'] =>
      async ({ parts, query, signal }) => ({
        path: `/containers/${(await container(parts.container, roles, signal)).Id}${path}`,
        query,
        ...(deadlineOf && { deadlineMs: deadlineOf(query) }),
      }),
    /** A program in a sandbox or beside it. */
    async execution(id: string, signal: AbortSignal): Promise<Docker.ExecInspectInfo> {
      const found = await dockerd.ask<Docker.ExecInspectInfo>(`/exec/${id}/json`, signal)
      await container(found.ContainerID, ['sandbox', 'files'], signal)
      return found
    },
    /** Accepts an image by its name, or by its id if a sandbox was made from it. */
    async image(name: string, signal: AbortSignal): Promise<void> {
      if (imageName.test(name)) return
      const filters = JSON.stringify({ ancestor: [name], label: [`${labels.role}=sandbox`] })
      const made = await dockerd.ask<Docker.ContainerInfo[]>('/containers/json', signal, { all: 'true', filters })
      if (!made.some(({ ImageID }) => ImageID === name)) throw new Refusal(403, `${name} is no image of a sandbox`)
    },
    /** The required shape of a container of that name. Only the one for the firewall has no name. */
    async containerShape(name: string | undefined, signal: AbortSignal): Promise<TSchema> {
      const beside = filesIdIn(name)
      if (beside) return filesShape(beside)
      const inside = roomIdIn(name)
      if (inside && share === 'worker') return roomShape(inside)
      const id = sandboxIdIn(name)
      if (id && share === 'worker') return sandboxShape(id, networks[0])
      if (name === undefined && share === 'worker') {
        const inspect = (network: string) => dockerd.ask<Docker.NetworkInspectInfo>(`/networks/${network}`, signal)
        return firewallShape((await Promise.all(networks.map(inspect))).map(bridgeOf))
      }
      throw new Refusal(403, 'the container does not have a name that it may have')
    },
  }
}
