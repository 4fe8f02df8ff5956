/** Lines that advise an operator to run a command: owners have no command line in a sandbox. */
const advice = /openclaw doctor|\bRun "openclaw\b|adjacent \.bak backup/i
/** The gateway's timestamp and a position in its configuration file, which Chowder writes. */
const linePrefix = /^(\d{4}-\d{2}-\d{2}T[\d:.]+(Z|[+-]\d{2}:\d{2}) )?(openclaw\.json(:\d+)* — )?/
/** An absolute path: its folders are those of the host. A URL does not begin with a slash. */
const hostPath = /(?<=^|[\s"'`(=])\/(?:[^\s"'`():;,/]+\/)+(?=[^\s"'`():;,/])/g

/** Filters a gateway's output for the owner of the instance: removes paths of the host and advice for operators. */
export const forOwner = (output: string): string =>
  output
    .split('\n')
    .filter((line) => !advice.test(line))
    .map((line) => line.replace(linePrefix, '').replace(hostPath, ''))
    .join('\n')
    .trim()
