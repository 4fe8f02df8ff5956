export interface Welcome {
  url: string
  dataDir: string
  database: string
  queue: string
  isolation: string
  /** Whether Ctrl-C stops the agents too. */
  stopsAgents: boolean
  release: string
}

/** What a newcomer needs once everything listens: where, what, and the next command. */
export const welcome = ({ url, dataDir, database, queue, isolation, stopsAgents, release }: Welcome): string => `
  Chowder is running.

  API       ${url}
  Docs      ${url}/docs
  Data      ${dataDir} (database: ${database}; queue: ${queue})
  Agents    ${release}. ${isolation}
  Stop      Ctrl-C stops Chowder ${stopsAgents ? 'and the agents; the next start brings them back' : 'alone; the agents go on running, and the next start adopts them'}.

  Next, create an organization and keep the key that it answers:

  curl -s ${url}/v1/organization/signup -H 'content-type: application/json' -d '{"name": "Acme"}'

`
