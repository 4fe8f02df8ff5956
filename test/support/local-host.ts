import { accessSync, constants, existsSync, readFileSync } from 'node:fs'
import { chmod, copyFile, mkdir, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { nodeBinary } from '#platform/data-folder.ts'
import type { SandboxPaths, SandboxSpec } from '#sandbox/driver.ts'
import { createLocalDriver, type LocalDriver } from '#sandbox/local/driver.ts'
import { createJail } from '#sandbox/local/jail.ts'
import { waysOutFolder } from '#sandbox/local/way-out.ts'

const isRoot = process.getuid?.() === 0

/** As with `systemd-run --user --scope -p Delegate=yes`. */
function ownControlGroupIsWritable(): boolean {
  const [, own] = /^0::(\/.+)$/m.exec(readFileSync('/proc/self/cgroup', 'utf8')) ?? []
  try {
    accessSync(`/sys/fs/cgroup${own}/cgroup.procs`, constants.W_OK)
    return true
  } catch {
    return false
  }
}

/** Whether this machine can limit the sandboxes of these tests by control groups. */
export const hasControlGroups = isRoot
  ? existsSync('/sys/fs/cgroup/memory/cgroup.procs') || existsSync('/sys/fs/cgroup/cgroup.controllers')
  : ownControlGroupIsWritable()

const gateway = fileURLToPath(new URL('./contract-gateway.mjs', import.meta.url))

export interface HostOptions {
  isJailed?: boolean
}

/** The port at which programs in jails reach what tests serve as `out`. */
export const outPort = 8090

/** A data folder with local sandboxes whose gateway is a small program, and what tests need to look behind them. */
export class LocalHost {
  readonly dataDir: string
  readonly driver: LocalDriver

  private constructor(dataDir: string, { isJailed }: HostOptions) {
    this.dataDir = dataDir
    const node = process.getuid?.() === 0 ? join(dataDir, 'node', process.version, 'node') : process.execPath
    this.driver = createLocalDriver({
      dataDir,
      node,
      jail: createJail({
        releases: join(dataDir, 'releases'),
        node,
        waysOut: [{ port: outPort, service: 'out' }],
        waysOutFolder: waysOutFolder(dataDir),
      }),
      noJail: isJailed ? null : 'the test wants none',
      acceptsOneUser: false,
      installRelease: async () => dataDir,
      installChannelPlugin: async () => dataDir,
      releaseFolder: () => join(dataDir, 'releases'),
      linkCompileCache: async () => {},
    })
  }

  /** Another control plane on the same data folder. */
  static on(dataDir: string, options: HostOptions = {}): LocalHost {
    return new LocalHost(dataDir, options)
  }

  static async make(options: HostOptions = {}): Promise<LocalHost> {
    const dataDir = await mkdtemp(join(tmpdir(), 'chowder-sandboxes-'))
    await chmod(dataDir, 0o711)
    await nodeBinary(dataDir)
    await mkdir(join(dataDir, 'releases'), { mode: 0o755 })
    await copyFile(gateway, join(dataDir, 'releases/gateway.mjs'))
    await chmod(join(dataDir, 'releases/gateway.mjs'), 0o644)
    return new LocalHost(dataDir, options)
  }

  command = ({ node, release, port }: SandboxPaths, ...manner: string[]): string[] => [
    node,
    join(release, 'gateway.mjs'),
    String(port),
    ...manner,
  ]

  specOf(id: string, overrides: Partial<SandboxSpec> = {}): SandboxSpec {
    return {
      id,
      organizationId: 'organization',
      release: 'v1',
      command: (paths) => this.command(paths),
      env: ({ home }) => ({ HOME: home, PATH: '/usr/bin:/bin', MARK: id }),
      resources: { memoryMb: 512, cpus: 1, pids: 64, diskMb: 0 },
      labels: { installation: 'test' },
      ...overrides,
    }
  }

  /** A file of the control plane's own part of a sandbox's folder. */
  controlFile = (id: string, name: string): string => join(this.dataDir, 'sandboxes', id, name)

  async remove(): Promise<void> {
    const signal = AbortSignal.timeout(60_000)
    for await (const { id } of this.driver.list(signal)) await this.driver.destroy(id, signal)
    await rm(this.dataDir, { recursive: true, force: true })
  }
}
