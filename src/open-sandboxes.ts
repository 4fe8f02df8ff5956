import { installChannelPlugin, installRelease } from './openclaw/install.ts'
import { releaseFolder } from './openclaw/releases.ts'
import type { Config } from './platform/config.ts'
import { nodeBinary } from './platform/data-folder.ts'
import type { Logger } from './platform/log.ts'
import { openDriver } from './sandbox/index.ts'
import type { LocalDriver } from './sandbox/local/driver.ts'

/** Opens what instances run in, as the configuration says. It touches no sandbox before it is asked to. */
export const openSandboxes = async (config: Config, dataDir: string, log: Logger): Promise<LocalDriver> =>
  openDriver(config.SANDBOX_DRIVER, {
    dataDir,
    node: await nodeBinary(dataDir),
    installRelease: (release, progress, signal) => installRelease({ dataDir, release, progress, signal }),
    installChannelPlugin: (release, channel, progress, signal) =>
      installChannelPlugin({ dataDir, release, channel, progress, signal }),
    releaseFolder: (release) => releaseFolder(dataDir, release),
    log,
  })
