import { type LocalDriver, type LocalDriverOptions, openLocalDriver } from './local/driver.ts'

/** Opens the driver of that name. It touches nothing before it is asked to. */
export const openDriver = (_name: 'local', options: LocalDriverOptions): LocalDriver => openLocalDriver(options)
