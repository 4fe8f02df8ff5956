/** The fixed texts of a turn's failures. */
export const turnTexts = {
  gatewayRefusedRequest: 'The gateway refused the request.',
  keyRefused: (provider: string) =>
    `The model provider (${provider}) refused your organization's API key. Set a valid model_api_keys.${provider} with PATCH /v1/organization.`,
  noCredit: (provider: string) =>
    `The model provider (${provider}) refused the turn over billing: check the credit of the account behind your organization's API key.`,
  chowderRefused: 'The gateway of this instance did not accept Chowder. Stop and start the instance.',
  gatewayFailed: (status: number, message: string | null) =>
    `The gateway of this instance failed with ${status}${message ? `: ${message}` : '.'}`,
  unreadable: 'The gateway of this instance sent an answer that cannot be read.',
  tooLarge: 'The gateway of this instance sent an answer that is too large.',
  cut: 'The gateway of this instance ended its answer before it was complete.',
  hung: 'The gateway of this instance does not respond any more. Try restarting the instance.',
  tooLong: (minutes: number) => `The turn was ended: it took longer than ${minutes} minutes.`,
  shuttingDown: 'The turn was ended because Chowder is shutting down. Try again.',
} as const
