import type { ProcessFacts } from '#database/processes.ts'

/** The row of a process of the API in the table `processes`. */
export const processFacts = (id: string): ProcessFacts => ({
  id,
  role: 'api',
  regions: [],
  version: '',
  commit: '',
  host: '',
  pid: 1,
})
