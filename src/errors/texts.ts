const verbs = { start: 'started', stop: 'stopped', restart: 'restarted' } as const
/** The way out for a stopped instance. */
const ifStopped = { start: '', stop: 'It is stopped already.', restart: 'Start it instead.' } as const
const remedies: Record<string, string> = {
  provisioning: 'Wait until it is running.',
  running: 'It is running already.',
  stopped: 'Start it first.',
  error: 'Its error_message says why. Fix that and start it to try again, or delete it.',
  terminated: 'It was deleted. Create another.',
}

/** The status as it follows `is`. */
const shown = (status: string) => (status === 'error' ? 'in the state error' : status)

/** The fixed texts for callers, in one place. The API contract fixes the first three byte for byte. */
export const texts = {
  instanceNotFound: 'Instance not found.',
  /** Follows instanceNotFound in `error.message`. */
  noInstanceId: (id: string) =>
    `${JSON.stringify(id.slice(0, 100))} is no id of an instance: an id looks like ` +
    '01a218de-6614-7c4f-95ce-63a40db57224. Is a variable empty?',
  gatewayUnavailable:
    'Gateway unavailable – the sandbox may have been stopped or deleted. Try restarting the instance.',
  instanceLimit: (count: number, limit: number) =>
    `Instance limit reached (${count}/${limit}). Upgrade your subscription.`,
  /** Follows instanceLimit without an upgrade. */
  limitWithoutBilling: (organizationId: string) =>
    'This server sells no subscriptions. ' +
    `Its operator raises the limit with npm run admin -- set-limit ${organizationId} <number>.`,
  sendKey: 'Send your API key in the header: Authorization: Bearer <key>.',
  internal: 'Internal error.',
  malformedPath:
    'The path cannot be read: a part of it is not percent-encoded UTF-8, or is longer than 1,024 characters. ' +
    'Encode each part, with encodeURIComponent for example.',
  noRoute: (method: string, path: string) => `No route ${method} ${path}.`,
  routesAt: 'GET /docs lists all.',
  nearRoute: (method: string, path: string) => `Did you mean ${method} ${path}?`,
  metricsElsewhere: 'Metrics have a port of their own: the operator of this server sets METRICS_PORT.',
  wrongMethod: (method: string, path: string, methods: readonly string[]) =>
    `${path} has no ${method}. It has ${methods.join(', ')}.`,
  sendJson: 'Send the body as application/json.',
  bodyTooLarge: 'The body is too large.',
  bodyTooSlow: (seconds: number) => `The body did not arrive within ${seconds} seconds. Send it faster.`,
  uploadStalled: (seconds: number) => `No bytes of the upload arrived for ${seconds} seconds. Send it again.`,
  notJson: (fault: string) => `The body is not valid JSON${fault}.`,
  wrongQuotes: 'JSON needs double quotes around names and texts.',
  prototypeKey:
    'The body has a key __proto__, or a key constructor with a key prototype in it. No call accepts them. Remove it.',
  compressedBody: (encoding: string) =>
    `The body has the Content-Encoding ${encoding}. Send it as it is, without this header.`,
  transferEncoding: (encoding: string) =>
    `The body has the Transfer-Encoding ${encoding}. Only chunked is accepted. Send it as it is.`,
  foreignCharset: (charset: string) => `The body has the charset ${charset}. Send UTF-8, which needs no charset.`,
  emptyBody: 'The body is empty. Send a JSON object.',
  wrongContentLength: 'The body does not have the length that Content-Length says.',
  oneHost: 'An HTTP/1.1 request must have one Host header.',
  unknownHost: (host: string) =>
    `This server does not answer to the host ${JSON.stringify(host.slice(0, 100))}. Use its own address. ` +
    'Its operator adds other names to CHOWDER_ALLOWED_HOSTS, or sets CHOWDER_PUBLIC_URL.',
  foreignOrigin: (origin: string | undefined) =>
    `A web page of ${origin === undefined ? 'another site' : origin.slice(0, 200)} may not call this server. ` +
    'Its operator adds the origin of the page to CORS_ALLOWED_ORIGINS.',
  needsScopedKey:
    'A web page of another origin may only make calls with a scoped key (chd_sk_…), because whoever opens the page ' +
    'can read its key. Make this call in your backend.',
  invalidSignupToken:
    'Signing up on this server requires its sign-up token, in the header X-Signup-Token. Its operator prints the token with ' +
    'npm run admin -- signup-token (docker compose exec api node src/commands/admin.ts signup-token).',
  oneOrganization:
    'Agents run as one user here and share the limits of that user: only one organization is allowed. Run Chowder as ' +
    'root, use SANDBOX_DRIVER=docker, or accept it with LOCAL_ISOLATION=jail; without a jail, with LOCAL_ISOLATION=none.',
  signupClosed:
    'Signing up is closed on this server. Its operator creates organizations: npm run admin -- create-org <name>.',
  noExpectations: 'The only supported expectation is 100-continue.',
  sandboxesUnavailable: 'The platform that runs the sandboxes is not available right now. Try again.',
  databaseDown: 'The database is not available right now. Try again.',
  tooDeep: (levels: number) => `The body nests lists and objects deeper than ${levels} levels. Send a flatter body.`,
  tooManyValues: (values: number) =>
    `The body has more than ${values.toLocaleString('en')} values: texts, numbers, lists and objects. ` +
    'A name counts once when it first appears, and once for each 64 characters. Send fewer, or fewer in one request.',
  /** A second process cannot use the embedded database of the first. */
  startAWorker:
    'Start one with npm start -- worker or, without DATABASE_URL, run npm start in place of npm start -- api.',
  tooManyLargeBodies: 'The server is busy with large requests. Send this one again in a moment.',
  notUtf8: 'The body is not valid UTF-8.',
  notUnicode: 'A text in the body has half of a surrogate pair (\\ud800 to \\udfff). Send whole characters.',
  unknownToken: 'Unknown or expired client token, or its key was revoked. Ask your backend for a new one.',
  unknownKey: 'Unknown, revoked or expired API key.',
  foreignKey:
    'Unknown API key: the keys of this server begin with chd_org_ or chd_sk_, and client tokens with chd_ct_. Send one ' +
    'of those.',
  malformedKey:
    'Unknown API key: after chd_org_ or chd_sk_ come 72 characters from 0 to 9 and a to f, whose last 8 are a checksum. ' +
    'Copy the whole key.',
  suspended: 'Your organization was suspended by the operator of this server.',
  needsOrganizationKey: 'This call needs an organization key (chd_org_…). Yours is a scoped key.',
  needsKey: 'This call needs a key. Yours is a client token: make the call in your backend.',
  lacksPermission: (permission: string) =>
    `Your key lacks the permission "${permission}" that this call needs. Ask your organization for a key that has it.`,
  notForInstance: 'Your key is not for this instance. Ask your organization for a key that is.',
  keyNotFound: 'Key not found.',
  webhookNotFound: 'Webhook not found.',
  deliveryNotFound: 'The webhook has no delivery of this event. Deliveries are kept for 30 days.',
  badWebhookUrl:
    'url must be an http or https address without a name and a password, such as https://example.com/chowder.',
  hookNotFound: 'Hook not found.',
  badHookSecret:
    'secret must be one of Standard Webhooks: whsec_ and at least 24 bytes in base64. Leave it out for one.',
  hookBody: 'The body of a call must be a JSON object.',
  hookSetUp: 'It was a call to set up the hook.',
  hookPaused: 'The hook is paused.',
  tooManyHooks: (hooks: number) => `The instance has ${hooks} hooks, which is the most. Delete one.`,
  badHookSignature: {
    standard: 'The signature in webhook-signature is not one of the secret of the hook, or is older than 5 minutes.',
    github: 'The signature in X-Hub-Signature-256 is not one of the secret of the hook.',
    slack: 'The signature in X-Slack-Signature is not one of the secret of the hook, or is older than 5 minutes.',
  },
  scheduleNotFound: 'Schedule not found.',
  badCron:
    'cron must be five fields, of minutes, hours, days, months and weekdays, that some day fits, such as 0 7 * * 1-5.',
  badAt: 'at must be an ISO 8601 time with a zone, such as 2026-12-31T23:59:59Z.',
  pastAt: 'at must be in the future. To run the schedule now, POST to its run.',
  cronAndAt: 'at cannot be sent with cron. A schedule runs by cron, or once.',
  noTimes: 'cron or at must be sent: the times of the schedule.',
  tooManySchedules: (schedules: number) =>
    `The instance has ${schedules} schedules, which is the most. Delete one: those that ran once stay in the list.`,
  failedRuns: (failures: number) => `${failures} runs in a row have failed.`,
  missedRun: (seconds: number) => `It could not begin within the ${seconds} seconds of catch_up_seconds.`,
  overlappingRun: 'The run before it went on.',
  tooManyWebhooks: (webhooks: number) =>
    `The organization has ${webhooks} webhooks, which is the most. Delete one, or let one get more types.`,
  unknownInstances: (ids: readonly string[]) =>
    `instance_ids must be instances of your organization that are not terminated. These are not: ${ids.join(', ')}.`,
  permissionBeyondSessions: (permission: string) =>
    `A key with session_ids or session_prefix may have the permissions interact and sessions. "${permission}" reaches ` +
    'beyond sessions: create another key for it.',
  sessionsBeyondKey: 'Your key is held to some sessions, and these are not all among them. GET /v1/key lists them.',
  noSessions: 'Send session_ids or session_prefix: a client token is for some sessions only.',
  badExpiry: 'expires_at must be an ISO 8601 time with a zone, such as 2026-12-31T23:59:59Z.',
  pastExpiry: 'expires_at must be in the future. To end a key now, revoke it with DELETE.',
  tooManyKeys: (keys: number) =>
    `The organization has ${keys.toLocaleString('en')} active keys, which is the most. Revoke unused ones: ` +
    'GET /v1/keys shows when each was used last.',
  keyRevoked: 'The key is revoked and cannot be changed. Create another.',
  lastOrganizationKey:
    'This is the last active organization key, and you cannot use your organization without one. ' +
    'Create another with POST /v1/organization/keys first.',
  otherName: 'The name in the body is not the name of your organization. Repeat it exactly to delete the organization.',
  noBilling:
    'Billing is not set up on this server. Its operator sets STRIPE_SECRET_KEY and the other settings of Stripe, ' +
    'or assigns tiers with npm run admin -- set-tier.',
  subscribed:
    'Your organization already has a subscription. ' +
    'Change or cancel it at the address from POST /v1/subscription/portal.',
  tierByArrangement:
    'Your organization has the tier whale by arrangement. Ask the operator of this server to change it.',
  noCustomer:
    'Your organization has no billing account yet. Subscribe at the address from POST /v1/subscription/checkout first.',
  stripeUnreachable: 'Stripe cannot be reached right now. Try again.',
  stripeRefused: 'Billing is not set up correctly on this server. Its operator finds the reason in its log.',
  badSignature: 'The Stripe-Signature header is missing, is older than 5 minutes, or does not match the body.',
  modelKeyRefused: (provider: string, words: string | null) =>
    `The model provider (${provider}) refuses the key in model_api_keys.${provider}, and nothing was changed. ` +
    `Copy the whole key from the provider's console.${words === null ? '' : ` It says: “${words}”`}`,
  modelKeyUnchecked: (provider: string, reason: string | null) =>
    `The key in model_api_keys.${provider} could not be checked, and nothing was changed. ` +
    `${reason === null ? '' : `${reason} `}Try again, or leave out "verify" to store it unchecked.`,
  noProviderKey: (provider: string) =>
    `Your organization has no ${provider} key. Set model_api_keys.${provider} with PATCH /v1/organization first.`,
  relayPaths: 'Agents call model providers here, at /relay/anthropic, /relay/openai and /relay/gemini.',
  relayToken:
    'The token is unknown here, or is no longer valid: agents get one when they start, for the provider that they were created with.',
  relayWarm: 'This agent belongs to no customer yet.',
  relayTokenEnded:
    'Chowder has ended this token: its agent is stopped, restarted or deleted. An agent gets another one when it starts.',
  relayRoute: (method: string, path: string) =>
    `${method} ${path.slice(0, 200)} is no call that agents may make. They may ask models, and list them.`,
  relayBackground: 'background is not supported: its usage could not be counted. Send the call without it.',
  relayVendorTool: (tool: string) =>
    `${JSON.stringify(tool)} reaches other hosts from the model provider, and the egress of this agent is not open. ` +
    'Send the call without it.',
  relayPlaces: 'Too many calls of models are open at the same time. Wait until some have ended.',
  relayBody: (bytes: number) => `The body of a call must not be larger than ${bytes / 1024 ** 2} MiB.`,
  relayUnavailable: 'The token cannot be checked now. Try again soon.',
  relayBudgets: 'The budgets of this call cannot be read now. Try again soon.',
  relaySilent: (provider: string) => `The model provider (${provider}) has not answered for 15 minutes.`,
  noTwoRooms: 'This server runs agents where their tools can have no room of their own: use isolation one_room.',
  cronJobNotFound: 'The agent has no cron job with this id.',
  approvalNotFound: 'The agent has no approval with this id. Its gateway keeps ended ones for 30 days.',
  decisionNotOffered: 'decision is not one that the gateway offers for this command.',
  linkExpired: 'The link of the approval has expired, or is not complete.',
  approveOrDeny: 'decision must be approve or deny.',
  byLink: 'by its link',
  approvalsOfOneRoom:
    'approvals must be auto with isolation two_rooms: OpenClaw asks only for commands that run beside the gateway.',
  outsideRoom: (path: string) =>
    `openclaw_config: ${JSON.stringify(path)} does not go with isolation two_rooms: it could run something beside the ` +
    'gateway, outside of the room of the tools.',
  unknownVersion: (version: string, known: readonly string[]) =>
    `openclaw_version ${JSON.stringify(version)} is unknown. Use one of: ${known.join(', ')}.`,
  unknownRegion: (name: string, known: readonly string[]) =>
    `region ${JSON.stringify(name)} is unknown. Use one of: ${known.join(', ')}.`,
  regionTakesNone: (name: string) =>
    `The region ${name} takes no new instances right now. Name another one of GET /v1/regions, or try again later.`,
  regionStartsNone: (name: string) =>
    `The region ${name} is being emptied by the operator, and starts no instances right now. Try again later.`,
  notRunning: (status: string) => `The instance is ${shown(status)}, not running. ${remedies[status]}`,
  cannot: (action: keyof typeof verbs, status: string) =>
    `An instance that is ${shown(status)} cannot be ${verbs[action]}. ${
      status === 'stopped' ? ifStopped[action] : remedies[status]
    }`,
  externalIdTaken: (externalId: string, instanceId: string) =>
    `external_id ${JSON.stringify(externalId)} is the id of the instance ${instanceId}, which is not terminated. ` +
    'Use that instance, or choose another external_id. A create with "if_exists": "return" answers with the instance.',
  ifExistsAlone: 'if_exists needs an external_id: it says what to do when an instance has that id already.',
  externalIdOfOrganization:
    'Only an organization key (chd_org_…) may change external_id: your organization finds its instances by it.',
  setTwice: (field: 'model' | 'instructions' | 'approvals', override: string) =>
    `${field} and ${JSON.stringify(override)} in openclaw_config set the same thing, and an instance can have only one ` +
    `of them. Leave one out; if it is stored, remove it in the same call, ${field} with ${field === 'approvals' ? 'auto' : 'null'}.`,
  modelOfItself:
    'openclaw stands for the model that is set here. Name a model of the provider, or send null for its default.',
  tooManyLabels: (count: number, limit: number) =>
    `metadata would have ${count} keys, and at most ${limit} are allowed. Remove some: null in place of a value.`,
  hostDiskFull:
    'This server has almost no room left on its disk. Its operator must make room; until then only reading, deleting and stopping work.',
  diskLimitReached: (used: string, limit: string) =>
    `The files of the instance have ${used} of ${limit} GB. Delete some, or raise resources.disk_mb.`,
  aboveMaximum: (name: string, wanted: number, maximum: number) =>
    `resources.${name} is ${wanted}, and at most ${maximum} is allowed here. The operator of this server can raise that.`,
  isTerminated: 'The instance is terminated and cannot be changed. Create another.',
  sessionChanging: 'Another call resets or deletes the session right now. Send the request again in a moment.',
  sessionNotFound: 'Session not found.',
  idempotencyKeyUsed: 'came with another request before. Send a new key with a new request.',
  tooMuchInFlight: {
    turns: (limit: number) =>
      `Your organization has ${limit} turns at this server already, which is the most. Wait until some have ended.`,
    sockets: (limit: number) =>
      `Your organization has ${limit} WebSockets and event streams at this server already, which is the most. Close some.`,
    transfers: (limit: number) =>
      `Your organization has ${limit} transfers of files at this server already, which is the most. Wait for some.`,
    lists: (limit: number) =>
      `Your organization has ${limit} lists at this server already, which is the most. Ask for fewer at a time.`,
    bytes: (limit: number) =>
      `The requests of your organization that wait for their answers have ${limit} bytes together, which is the most. ` +
      'Send smaller ones, or fewer at a time.',
  },
  rateLimited: (seconds: number) => `Too many requests. Try again in ${seconds} seconds.`,
  tooManyExports:
    'Usage is being exported already, by your organization or by as many others as this server allows. Try again once ' +
    'that export has ended, or read pages.',
  duplicateInProgress: 'A request with the same Idempotency-Key is still in progress. Repeat this one in a moment.',
  unknownCursor:
    'The cursor does not belong to this list. Take it from the header X-Next-Cursor or Link of the page before.',
  badTime: (param: string) =>
    `${param} must be a time in ISO 8601 with a zone, such as 2026-02-14T16:00:00Z or 2026-02-14T17:00:00%2B01:00.`,
  emptyTime: 'from must be before to, which is now unless you send it.',
  longTime: (days: number) => `from may be at most ${days} days before to, which is now unless you send it.`,
  budgetTwice: (name: string) => `Two budgets have the name ${name}. Give each another one.`,
  settingsTooLarge: (kib: number) =>
    `The settings of all channels and skills of an instance must not be larger than ${kib} KiB together. ` +
    'Remove some first.',
  limitOfOrganization: (field: string) => `Only an organization key may change ${field}: a scoped key is held to it.`,
  unknownTimeZone: 'time_zone must be the name of a time zone in the IANA database, such as Europe/Berlin or UTC.',
  stillWaking: 'The instance is still starting. Try again.',
  isBusy: 'The instance is being changed right now. Try again.',
  /** By the status of the instance. */
  logEnded: {
    stopped: 'The instance was stopped.',
    error: 'The instance is in the state error.',
    terminated: 'The instance was deleted.',
  } as Partial<Record<string, string>>,
  tooManyFollowers: 'Too many requests follow the output of agents already. Close one, or read it without follow=true.',
  unknownChannel: 'Channel not found.',
  /** Follows unknownChannel in `error.message`. */
  knownChannels: (close: string | undefined, known: readonly string[]) =>
    close === undefined ? `The channels are: ${known.join(', ')}.` : `Did you mean ${close}?`,
  missingChannelFields: (channel: string, fields: readonly string[]) =>
    `config of ${channel} needs ${fields.join(', ')}, and none may be empty. ` +
    `GET …/channels/${channel} describes each.`,
  channelNotConnected: (title: string, reason: string) =>
    `${title} was not connected, and nothing was stored: ${reason}`,
  channelUnconfigured: (title: string) =>
    `${title} was not connected, and nothing was stored: OpenClaw reports that it is not configured. ` +
    'Add the other keys that it needs.',
  channelUnreachable: (title: string, reason: string) => `${title} cannot be reached: ${reason}`,
  channelPreparing: 'The channel is being prepared on this host. Follow it with GET …/status.',
  channelSuppressed:
    'The gateway ended by itself three times within five minutes, so OpenClaw started no channel. It starts them again ' +
    'once the gateway has run for five to ten minutes. To start this channel now, connect it again without config.',
  channelOff: (channel: string) => `The channel ${channel} is not connected. Connect it first.`,
  notInteractive: (channel: string) => `The channel ${channel} has no QR code: it connects with credentials.`,
  unknownPairingCode: 'No pending request has this code. It was mistyped, was used already, or is older than an hour.',
  filesDeleted: 'The instance is terminated and its files are deleted. Create another.',
  noFilesYet: (status: string) => `The instance is ${shown(status)} and has no files yet. ${remedies[status]}`,
  noSuchFile: 'There is no such file or directory.',
  pathAbsolute: 'A path must not begin with /: it is relative to the workspace.',
  pathUpwards: 'A path must not contain "..": only files in the workspace are available.',
  pathBackslash: 'A path must not contain a backslash: separate names with /.',
  pathNul: 'A path must not contain NUL.',
  pathTooLong: 'A path must not be longer than 4096 characters.',
  pathTooDeep: (param: string, levels: number) =>
    `${param} must not have more than ${levels} levels. Write to a directory nearer to the workspace.`,
  pathIsLink: 'The path leads to a symbolic link, or through one. No call follows it. Name the file that it points to.',
  pathIsFolder: 'The path names a directory. A file is needed.',
  pathIsNoFolder: 'The path, or a part of it, names a file. A directory is needed there.',
  pathIsSpecial: 'The path names a pipe, a socket or a device. Name a file or a directory.',
  moveIntoItself: 'A directory cannot be moved into itself. Choose a destination outside of it.',
  nameTooLong: 'A name in the path is too long: each may have up to 255 bytes.',
  permissionDenied: 'The permissions of the file or of its directory forbid it. The agent can change them.',
  fileLocked: 'The agent has locked the file. Try again.',
  reservedPath: 'The path .keep is reserved: OpenClaw needs that file. Use another name.',
  wholeWorkspace: 'The workspace itself cannot be moved or deleted. Name a file or a directory in it.',
  destinationExists:
    'The destination exists already. With "overwrite": true a file replaces another file. ' +
    'A directory is never replaced.',
  folderNotEmpty:
    'The directory is not empty. Add recursive=true to delete it with its contents. ' +
    'If the call has it, a program has written into the directory meanwhile: try again.',
  fileIsNoText: 'The file is not UTF-8 text. Download it with GET /v1/instances/{instance_id}/files/download.',
  fileTooLarge: (maxBytes: number) =>
    'The file is too large. files/content reads and writes up to 1 MiB of text, ' +
    `files/upload accepts up to ${maxBytes} bytes, and files/download has no limit.`,
  fileChanges: 'The file became shorter while it was read. Try again.',
  diskFull: 'The disk that the instance uses is full. Delete files and try again.',
  noSuchRange: (size: number) => `The file has ${size} bytes, and none of them is in that range.`,
  clientLeft: 'The client has left.',
  filesTooSlow: 'The sandbox did not answer in time.',
  sendForm: 'Send the file as multipart/form-data with the fields path and file.',
  brokenForm: 'The form must have exactly the fields path (text) and file, each once, and must be complete.',
  skillNotFound: 'Skill not found.',
  noSuchSkill: (slug: string) =>
    `The registry has no skill with the slug ${slug}. Search for it with GET …/skills/search.`,
  ambiguousSkill: (slug: string, names: readonly string[]) =>
    `More than one skill has the slug ${slug}. Choose one of ${names.join(', ')}.`,
  skillRefused: (skill: string, why: string) => `${skill} is not installed: ${why}.`,
  skillUnverified: (skill: string, why: string) =>
    `${skill} is not installed: ${why}. Send "allow_unverified": true to install it at your own risk.`,
  skillInstalled: (name: string, version: string) =>
    `The skill ${name} is already installed in version ${version}. ` +
    `Change its version with POST …/skills/${name}/update.`,
  skillUpToDate: (name: string, version: string) => `${name} already has version ${version}.`,
  otherSkillInstalled: (other: string) => `${other} is installed and uses the same folder. Uninstall it first.`,
  skillFolderTaken: (slug: string) =>
    `The folder skills/${slug} has a skill that is not from the registry. Move or delete it first.`,
  skillNotInstalled:
    'The skill is not from the registry. Disable it with "enabled": false, ' +
    'or change its files if it is in the workspace.',
} as const
