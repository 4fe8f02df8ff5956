/** The fixed texts of a turn's failures. */
export const errorTexts = {
  gatewayRefusedRequest: 'The gateway refused the request.',
  mediaRefused:
    'OpenClaw refused an image or a file in input: it cannot be fetched, is larger than 10 MB (an image) or 5 MB (a file), or is of a kind that is not taken.',
  toolRefused: 'OpenClaw refused tools: a name is one of its own tools’.',
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
  clientLeft: 'The client left before the turn had ended.',
  responseNotFound: 'Response not found.',
  previousUnknown: 'there is no such response, or it is kept no longer.',
  previousOfOtherInstance: 'that response is of another instance.',
  previousOfOtherSession: 'that response is of another session. The path decides which session is spoken to.',
  previousNotLatest: (latest: string | null) =>
    `that response is not the latest of its session${latest ? `, which is ${latest}` : ''}: a conversation cannot be taken up in its middle.`,
  previousInProgress: 'that response is still in progress.',
  notInProgress: 'The response has ended already.',
  stillInProgress: 'The response is still in progress. Cancel it first.',
  needsWebSocket: 'Connect with a WebSocket (Upgrade: websocket), or send a POST.',
  textFrames: 'Send JSON in text frames.',
  onlyCreate: 'type: only "response.create" is taken.',
  oneAfterAnother: 'stream_id: the turns of a connection run one after the other. Open another connection.',
  noWarmUp: 'generate: only true is taken, because an agent is not prepared without being asked.',
  tooManyWaiting: 'Too many turns wait on this connection. Wait for the one that runs.',
  connectionTooOld: 'A connection lasts 60 minutes. Open another and go on with previous_response_id.',
  lost: 'The turn was lost when the server that ran it ended.',
} as const
