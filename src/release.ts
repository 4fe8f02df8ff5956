import './platform/node-version.ts'

import { installRelease } from './openclaw/install.ts'
import { knownReleases } from './openclaw/releases.ts'
import { loadConfig } from './platform/config.ts'
import { dataFolder, prepareDataFolder } from './platform/data-folder.ts'

/** Installs a release ahead of time, so that no instance waits for it. */
async function prepare(release: string | undefined): Promise<void> {
  if (release === undefined || !knownReleases().includes(release)) {
    throw new Error(`usage: npm run release -- <release>, which is one of: ${knownReleases().join(', ')}`)
  }
  const dataDir = dataFolder(loadConfig().CHOWDER_DATA_DIR)
  await prepareDataFolder(dataDir)
  const interrupted = new AbortController()
  for (const name of ['SIGINT', 'SIGTERM'] as const)
    process.once(name, () => interrupted.abort(new Error('interrupted')))
  const progress = (line: string) => console.log(line)
  console.log(await installRelease({ dataDir, release, progress, signal: interrupted.signal }))
}

await prepare(process.argv[2]).catch((error: Error) => {
  console.error(error.message)
  process.exitCode = 1
})
