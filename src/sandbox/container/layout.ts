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
/** The user that agents run as, and its group. */
export const agentUid = 10_001
export const gatewayPort = 18_789
/** The port on which the forwarder listens. */
export const forwarderPort = 18_790

/** Options of Node.js for small programs. */
export const nodeFlags = ['--max-old-space-size=64', '--max-semi-space-size=1']
/** The agent runs as the same user, and a signal could open a debugger in the supervisor. */
export const supervisorFlags = [...nodeFlags, '--disable-sigusr1']
