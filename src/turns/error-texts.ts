/** The fixed messages of the errors of responses and chat completions. */
export const errorTexts = {
  gatewayRefusedRequest: 'The gateway refused the request.',
  mediaRefused:
    'OpenClaw refused an image or a file in input: it cannot be fetched, it is larger than 10 MB (an image) or ' +
    '5 MB (a file), or OpenClaw does not accept its type.',
  toolRefused: 'OpenClaw refused tools: the agent has a tool of its own with the same name.',
  keyRefused: (provider: string) =>
    `The model provider (${provider}) refused your organization's API key. ` +
    `Set a valid model_api_keys.${provider} with PATCH /v1/organization.`,
  keyOnHold: (provider: string, minutes: string) =>
    `The model provider (${provider}) refused your organization's API key or its account a moment ago; ` +
    `the agent tries again within ${minutes} min. ` +
    `Another model_api_keys.${provider}, set with PATCH /v1/organization, is used at once.`,
  noCredit: (provider: string) =>
    `The model provider (${provider}) refused the turn over billing: ` +
    "check the credit of the account behind your organization's API key.",
  providerRateLimited: (provider: string, seconds: number | undefined) =>
    `The model provider (${provider}) refused the turn: your organization's API key has reached its rate limit. ` +
    (seconds === undefined ? 'Try again later.' : `Try again in ${seconds} s.`),
  providerOverloaded: (provider: string) => `The model provider (${provider}) is overloaded. Try again in a moment.`,
  providerUnreachable: (provider: string) =>
    `The model provider (${provider}) could not be reached, or its answer broke off. Try again in a moment.`,
  providerFailed: (provider: string) => `The model provider (${provider}) failed. Try again in a moment.`,
  providerRequestTooLarge: (provider: string) =>
    `The request is larger than the model provider (${provider}) accepts. Send less, or reset the session.`,
  providerRefusedRequest: (provider: string) => `The model provider (${provider}) refused the request.`,
  modelNotFound: (provider: string) =>
    `The model provider (${provider}) does not know the model, or your organization's API key may not use it.`,
  /** A provider's message, appended to another text. */
  providerSays: (words: string | null) => (words === null ? '' : ` It says: “${words}”`),
  chowderRefused: 'The gateway of this instance did not accept Chowder. Stop and start the instance.',
  gatewayFailed: (status: number, message: string | null) =>
    `The gateway of this instance failed with ${status}${message ? `: ${message}` : '.'}`,
  notBegun:
    'OpenClaw did not begin the turn: something else changed its session at the same moment, such as a message from ' +
    'a chat channel. The model was not asked. Send it again.',
  unreadable: 'The gateway of this instance sent an answer that cannot be read.',
  tooLarge: 'The gateway of this instance sent an answer that is too large.',
  approvalTooLate: (minutes: number) => `denied: the approval had no answer for ${minutes} minutes`,
  approvalOfEndedTurn: 'cancelled: the turn has ended',
  cut: 'The gateway of this instance ended its answer before it was complete.',
  invalidOutput: (fault: string) =>
    `The agent's answer does not have the requested format, also after it was asked a second time: ${fault}.`,
  uncheckedOutput: "The agent's answer could not be checked in time. Simplify the schema.",
  hung: 'The gateway of this instance does not respond any more. Try restarting the instance.',
  tooLong: (minutes: number) => `The turn was ended: it took longer than ${minutes} minutes.`,
  waitedTooLong: (minutes: number) =>
    `The turn was ended before it began: it waited ${minutes} minutes for the earlier turns of its session. ` +
    'Send it again, or use another session.',
  lineFull: (turns: number) =>
    `${turns} turns of this session run or wait already. Wait until some of them have ended, or use another session.`,
  otherTurn:
    'Another turn of this session runs or waits. Send this one later, in another session, or with on_busy: queue.',
  sessionBusy: 'Other turns begin in this session right now. Try again in a moment, or use another session.',
  sessionReset: 'The turn was ended because its session was reset or deleted.',
  instanceStopping:
    'The turn was ended because its instance was stopped or deleted. What the agent has done until then remains.',
  instanceRestarting:
    'The turn was ended because its instance was restarted. What the agent has done until then remains. ' +
    'Send the turn again if it is still wanted, once the instance is running.',
  interrupted:
    "The turn was ended because its agent's gateway ended. What the agent has done until then remains. " +
    'Send the turn again if it is still wanted.',
  tooManyInBackground: (turns: number) =>
    `${turns} background turns of this instance run or wait already. Wait until some of them have ended.`,
  backgroundTooLarge: (mebibytes: number) =>
    `A background turn may have ${mebibytes} MiB. Upload large files to the agent, or send background: false.`,
  notStreamable:
    'only background responses can be streamed again. Send background: true, or read this one without stream.',
  shuttingDown: 'The turn was ended because Chowder is shutting down. Try again.',
  clientLeft: 'The client left before the turn had ended.',
  responseNotFound: 'Response not found.',
  previousUnknown: 'there is no such response, or it has expired.',
  previousOfOtherInstance: 'that response belongs to another instance.',
  previousOfOtherSession: 'that response belongs to another session. The path or `conversation` selects the session.',
  previousNotLatest: (latest: string | null) =>
    `that response is not the latest of its session${latest ? `, which is ${latest}` : ''}: ` +
    'a conversation continues from its latest response only.',
  previousInProgress: 'that response is still in progress.',
  conversationTooLarge: (mebibytes: number) =>
    `The stored conversation has more than ${mebibytes} MiB, so it cannot be compacted at once. ` +
    'Send the items that matter as input, without previous_response_id.',
  noSummary: 'The agent wrote no complete summary of the conversation.',
  notInProgress: 'The response has already ended.',
  stillInProgress: 'The response is still in progress. Cancel it first.',
  needsWebSocket: 'Connect with a WebSocket (Upgrade: websocket), or send a POST.',
  badHandshake:
    'The WebSocket handshake needs Sec-WebSocket-Version: 13, and a Sec-WebSocket-Key of 16 bytes in base64. ' +
    'A WebSocket library sends both.',
  textFrames: 'Send JSON in text frames.',
  onlyCreate: 'must be "response.create".',
  noStreamId: 'the turns of a connection run one after the other. Open another connection.',
  noWarmUp: 'must be true: an agent cannot be prepared without a turn.',
  longEcho: (characters: number) =>
    `instructions and tools together may have ${characters.toLocaleString('en')} characters: the response repeats ` +
    'them. Send long texts in input.',
  tooManyWaiting: 'Too many turns wait on this connection. Wait until the running turn has ended.',
  tooManyRefused: '100 frames in a row began no turn. Read the errors that they got, and open another connection.',
  connectionTooOld: 'A connection lasts 60 minutes. Open another one and continue with previous_response_id.',
  lost: 'The turn was lost because the server that ran it ended.',
} as const
