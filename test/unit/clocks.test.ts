import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'

const source = join(import.meta.dirname, '../../src')

/** What the system clock of a process is read for: nothing that another process, or a jump of it, may contradict. */
const uses: Record<string, string> = {
  'api/responses/format/response-writer.ts': 'a time that is shown',
  'commands/admin/trace.ts': 'a time that is shown',
  'commands/doctor/report.ts': 'a time that is shown',
  'lifecycle/queue/queue.ts': 'a figure',
  'openclaw/release/make-once.ts': 'a name that is used once',
  'errors/budget-texts.ts': 'a time that is shown',
  'relay/headers.ts': 'a time that a vendor gave, and after which it is asked again; there is no other clock for it',
  'sandbox/docker/network.ts': 'a time that dockerd of the same host wrote',
  'sandbox/kubernetes/cluster.ts': 'the end of a credential, a time that its program gave',
  'sandbox/local/folder.ts': 'a time that the file system of the same host wrote',
}

test('F21: leases, expiries and limits go by the clock of the database, or by a monotonic one', () => {
  const found = readdirSync(source, { recursive: true, encoding: 'utf8' })
    .filter((path) => path.endsWith('.ts'))
    .filter((path) => /Date\.now\(|new Date\(\)/.test(readFileSync(join(source, path), 'utf8')))
  expect(found.sort()).toEqual(Object.keys(uses).sort())
})
