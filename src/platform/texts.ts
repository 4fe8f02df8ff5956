const verbs = { start: 'started', stop: 'stopped' } as const
const waysOut: Record<string, string> = {
  provisioning: 'Wait until it is running.',
  running: 'It is running already.',
  stopped: 'Start it first.',
  error: 'Start it to try again, or delete it.',
  terminated: 'It was deleted; create another.',
}

/** Every fixed text that callers see, in one place. The first three are the documented ones, to the letter. */
export const texts = {
  instanceNotFound: 'Instance not found.',
  gatewayUnavailable:
    'Gateway unavailable – the sandbox may have been stopped or deleted. Try restarting the instance.',
  instanceLimit: (limit: number) => `Instance limit reached (${limit}/${limit}). Upgrade your subscription.`,
  sendKey: 'Send your API key in the header: Authorization: Bearer <key>.',
  unknownKey: 'Unknown or revoked API key.',
  noProviderKey: (provider: string) =>
    `Your organization has no ${provider} key. Set model_api_keys.${provider} with PATCH /v1/organization first.`,
  unknownVersion: (version: string, known: readonly string[]) =>
    `openclaw_version ${JSON.stringify(version)} is not known. Use one of: ${known.join(', ')}.`,
  notRunning: (status: string) => `The instance is ${status}, not running. ${waysOut[status]}`,
  cannot: (action: 'start' | 'stop', status: string) =>
    `An instance that is ${status} cannot be ${verbs[action]}. ${
      action === 'stop' && status === 'stopped' ? 'It is stopped already.' : waysOut[status]
    }`,
  isTerminated: 'The instance is terminated and cannot be changed. Create another.',
  isBusy: 'The instance is being changed right now. Try again.',
} as const
