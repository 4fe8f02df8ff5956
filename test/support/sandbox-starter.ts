import { LocalHost } from './local-host.ts'

/** A control plane in short: makes and starts one sandbox in the given data folder, says so, and stays. */
const [dataDir = '', id = ''] = process.argv.slice(2)
const host = LocalHost.on(dataDir)
const signal = AbortSignal.timeout(30_000)
await host.driver.create(host.specOf(id), signal)
await host.driver.start(id, signal)
process.stdout.write('started\n')
setInterval(() => {}, 60_000)
