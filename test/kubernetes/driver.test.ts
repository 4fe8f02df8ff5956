import { randomUUID } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe } from 'vitest'
import { describeDriver } from '../support/driver-contract.ts'
import { namespace, repository, startCluster, type TestCluster } from '../support/kubernetes-cluster.ts'
import { contractSubject, kubernetesDriver } from '../support/kubernetes-host.ts'

const minute = 60_000

describe('with a real cluster of one node', () => {
  let cluster: TestCluster

  beforeAll(async () => {
    cluster = await startCluster()
  }, 70 * minute)
  afterAll(() => cluster?.close(), minute)

  describeDriver('kubernetes', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'chowder-kubernetes-'))
    const { config } = cluster
    const driver = kubernetesDriver({ config, namespace, repository, socketFolder: folder, installation: randomUUID() })
    return contractSubject(driver, () => rm(folder, { recursive: true }))
  })
})
