/**
 * The reason why an instance does not run, for its owner: a sentence of Chowder, then the gateway's output on the
 * following lines. Anyone who talks to the agent may have caused that output, so it is shown only to those who may read
 * its log.
 */
export const failureMessage = (sentence: string, gatewayWords?: string): string =>
  gatewayWords ? `${sentence}\n${gatewayWords}` : sentence

/** A message as shown to a caller: whole with the permission `configure`, otherwise only the sentence. */
export function shownMessage(message: string | null, mayConfigure: boolean): string | null {
  if (message === null) return null
  return mayConfigure ? message.replace('\n', ' ') : (message.split('\n', 1)[0] as string).replace(/:$/, '.')
}
