/**
 * Why an instance does not run, for its owner: a sentence of Chowder and, on the lines after it, what the gateway said.
 * The gateway's words may be anybody's who talks to the agent: only those who may read its log may read them.
 */
export const failureMessage = (sentence: string, gatewayWords?: string): string =>
  gatewayWords ? `${sentence}\n${gatewayWords}` : sentence

/** A message as a caller reads it: whole for those with the permission `configure`, else the sentence alone. */
export function shownMessage(message: string | null, mayConfigure: boolean): string | null {
  if (message === null) return null
  return mayConfigure ? message.replace('\n', ' ') : (message.split('\n', 1)[0] as string).replace(/:$/, '.')
}
