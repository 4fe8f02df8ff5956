import type { ProcessFacts } from '#database/processes.ts'

/** What a process of the API says of itself in the table `processes`. */
export const processFacts = (id: string): ProcessFacts => ({
  id,
  role: 'api',
  regions: [],
  version: '',
  commit: '',
  host: '',
  pid: 1,
  secretKeyIds: [],
})
