import { createHash } from 'node:crypto'

/** Paths and numbers common to all images; `image/Dockerfile` has them too. */
export const node = '/usr/local/bin/node'
export const home = '/agent/home'
export const releasesBase = '/opt/chowder'
const allPrograms = '/opt/chowder/programs'
export const programs = `${allPrograms}/container/image`
export const podPrograms = `${allPrograms}/kubernetes/image`
/** The programs of both rooms, the root of the separate room, and the folder of its sockets. */
export const roomPrograms = `${allPrograms}/room`
export const roomRoot = '/room'
export const roomSockets = '/run/room'
/** The group of all agents, to which the folders of their volumes belong. */
export const agentGid = 10_001
/** The ids that the conventions of systemd leave to containers. */
const uids = { first: 524_288, count: 1_878_523_904 }
export const gatewayPort = 18_789
/** The port on which the forwarder listens. */
export const forwarderPort = 18_790

/** Options of Node.js for small programs. */
export const nodeFlags = ['--max-old-space-size=64', '--max-semi-space-size=1']
/** The agent runs as the same user, and a signal could open a debugger in the supervisor. */
export const supervisorFlags = [...nodeFlags, '--disable-sigusr1']

/**
 * The user id of an agent, derived from the id of its instance. The kernel counts inotify, epoll and the like by user,
 * so that with one id one agent would use up what all have. Of 1,000 agents on a host, two have the same id on one of
 * 3,700 hosts; a given pair has it once in 1.9 billion.
 */
export const agentUid = (id: string): number =>
  uids.first + (createHash('sha256').update(id).digest().readUIntBE(0, 6) % uids.count)
