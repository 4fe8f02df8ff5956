import { openCloudDriver } from '../../support/cloud-driver.ts'
import { describeDriver } from '../../support/driver-contract.ts'
import { startFakeCloud } from '../../support/fake-cloud.ts'

describeDriver('fake cloud', async () => {
  const cloud = await startFakeCloud({ isLenient: true })
  return {
    driver: openCloudDriver(cloud.url, 'the contract'),
    command: () => ['gateway'],
    endGateway: (id, _seen, code) => cloud.die(id, { code, oom: false }),
    gatewayOf: async (id) => cloud.history.filter((event) => event.id === id && event.what === 'started').length,
    setLoop: async (id, _seen, loop) => cloud.setLoop(id, loop === 'waits' ? 'computes' : loop),
    runsPrograms: false,
    keepsLimits: false,
    close: () => cloud.close(),
  }
})
