// Chowder as an operator runs it, `chowder.ts <role>`, on the fake cloud at CLOUD_URL instead of SANDBOX_DRIVER.
import { main } from '#main.ts'
import { openCloudDriver } from '../support/cloud-driver.ts'

const { CLOUD_URL: cloudUrl } = process.env
if (!cloudUrl) throw new Error('usage: CLOUD_URL=… chowder.ts <role>')
await main(async () => openCloudDriver(cloudUrl, `${process.argv[2]} ${process.pid}`))
