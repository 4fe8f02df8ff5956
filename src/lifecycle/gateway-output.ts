/** Lines that tell the operator of an OpenClaw what to run: nobody has a command line in a sandbox. */
const advice = /openclaw doctor|\bRun "openclaw\b|adjacent \.bak backup/i
/** The gateway's clock and the place in its file, which is written by Chowder. */
const linePrefix = /^(\d{4}-\d{2}-\d{2}T[\d:.]+(Z|[+-]\d{2}:\d{2}) )?(openclaw\.json(:\d+)* — )?/
/** A path from the root: its folders are those of the host. A URL does not begin with a slash. */
const hostPath = /(?<=^|[\s"'`(=])\/(?:[^\s"'`():;,/]+\/)+(?=[^\s"'`():;,/])/g

/** What a gateway printed, for the owner of the instance: without paths of the host and without advice for operators. */
export const forOwner = (output: string): string =>
  output
    .split('\n')
    .filter((line) => !advice.test(line))
    .map((line) => line.replace(linePrefix, '').replace(hostPath, ''))
    .join('\n')
    .trim()
