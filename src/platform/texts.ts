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
  instanceLimit: (count: number, limit: number) =>
    `Instance limit reached (${count}/${limit}). Upgrade your subscription.`,
  sendKey: 'Send your API key in the header: Authorization: Bearer <key>.',
  internal: 'Internal error.',
  notFound: 'Not found.',
  noRoute: (method: string, path: string) => `No route ${method} ${path}.`,
  sendJson: 'Send the body as application/json.',
  bodyTooLarge: 'The body is too large.',
  notJson: 'The body is not valid JSON.',
  emptyBody: 'The body is empty; send a JSON object.',
  wrongContentLength: 'The body has another length than Content-Length says.',
  noHost: 'An HTTP/1.1 request must have a Host header.',
  noExpectations: 'The only expectation that can be met is 100-continue.',
  sandboxesUnavailable: 'The platform that runs the sandboxes is not available right now. Try again.',
  databaseDown: 'The database is not available right now. Try again.',
  tooDeep: (levels: number) =>
    `The body nests lists and objects more than ${levels} levels deep. Send one that is flatter.`,
  notUtf8: 'The body is not valid UTF-8.',
  notUnicode: 'A text in the body holds half of a surrogate pair (\\ud800 to \\udfff). Send whole characters.',
  unknownKey: 'Unknown, revoked or expired API key.',
  disabled: 'Your organization was disabled by the operator of this server.',
  needsOrganizationKey: 'This call needs an organization key (chd_org_…). Yours is a scoped key.',
  lacksPermission: (permission: string) =>
    `Your key lacks the permission "${permission}" that this call needs. Ask your organization for a key that holds it.`,
  notForInstance: 'Your key is not for this instance. Ask your organization for one that is.',
  keyNotFound: 'Key not found.',
  unknownInstances: (ids: readonly string[]) =>
    `instance_ids must be instances of your organization that are not terminated. These are not: ${ids.join(', ')}.`,
  badExpiry: 'expires_at must be an ISO 8601 time with a zone, such as 2026-12-31T23:59:59Z.',
  pastExpiry: 'expires_at must be in the future. To end a key now, revoke it with DELETE.',
  keyRevoked: 'The key is revoked and cannot be changed. Create another.',
  lastOrganizationKey:
    'This is the last active organization key, and without one your organization is lost to you. Create another with POST /v1/organization/keys first.',
  otherName: 'The name in the body is not the name of your organization. Repeat it exactly to delete the organization.',
  noBilling:
    'Billing is not set up on this server. Whoever operates it sets STRIPE_SECRET_KEY and its companions, or gives tiers with npm run admin -- set-tier.',
  subscribed:
    'Your organization has a subscription already. Change or cancel it at the address from POST /v1/subscription/portal.',
  tierByArrangement:
    'Your organization is on the tier whale by arrangement. Ask whoever operates this server to change it.',
  noCustomer:
    'Your organization has no billing account yet. Subscribe at the address from POST /v1/subscription/checkout first.',
  stripeAway: 'Stripe cannot be reached right now. Try again.',
  stripeRefused:
    'Stripe refused the request: a setting of this server is wrong. Whoever operates it finds why in its log.',
  badSignature:
    'The Stripe-Signature header is missing, older than 5 minutes, or not made of this body with the secret.',
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
  sessionNotFound: 'Session not found.',
  idempotencyKeyUsed: 'came with another request before. Send a new key with a new request.',
  rateLimited: (seconds: number) => `Too many requests. Try again in ${seconds} seconds.`,
  duplicateInProgress: 'A request with the same Idempotency-Key is still being worked on. Repeat this one in a moment.',
  unknownCursor: 'The cursor is not one of this list. Take it from the Link header of the page before.',
  isBusy: 'The instance is being changed right now. Try again.',
  unknownChannel: 'Channel not found.',
  missingChannelFields: (channel: string, fields: readonly string[]) =>
    `config of ${channel} needs ${fields.join(', ')}: each a text that is not empty. GET …/channels/${channel} says what each is.`,
  channelNotConnected: (title: string, reason: string) =>
    `${title} was not connected, and nothing was stored: ${reason}`,
  channelUnconfigured: (title: string) =>
    `${title} was not connected, and nothing was stored: OpenClaw calls it not configured. Give the keys of its own that it needs besides.`,
  channelDown: (title: string, reason: string) => `${title} is not reached: ${reason}`,
  channelPreparing: 'The channel is being prepared on this host. Follow it with GET …/status.',
  channelOff: (channel: string) => `The channel ${channel} is not connected. Connect it first.`,
  notInteractive: (channel: string) => `The channel ${channel} has no QR code: it is connected with credentials.`,
  unknownPairingCode: 'No pending request has this code: it was mistyped, used, or is older than an hour.',
  filesGone: 'The instance is terminated and its files are gone. Create another.',
  noFilesYet: (status: string) => `The instance is ${status} and has no files yet. ${waysOut[status]}`,
  noSuchFile: 'There is no such file or directory.',
  pathAbsolute: 'A path must not begin with /: it is relative to the workspace.',
  pathUpwards: 'A path must not contain "..": only files in the workspace can be reached.',
  pathBackslash: 'A path must not contain a backslash: separate names with /.',
  pathNul: 'A path must not contain NUL.',
  pathTooLong: 'A path must not be longer than 4096 characters.',
  pathUnusable:
    'The path leads through a file or a symbolic link (no call follows one), has a name that is too long, is neither a file nor a directory, or its permissions forbid it.',
  pathIsFolder: 'The path is that of a directory, where a file is needed.',
  reservedPath: 'The path .keep is reserved: OpenClaw needs that file. Use another name.',
  wholeWorkspace: 'The workspace itself cannot be moved or deleted. Name something in it.',
  destinationExists:
    'The destination exists already. A file takes the place of another file with "overwrite": true; a directory is never replaced.',
  folderNotEmpty: 'The directory is not empty. Add recursive=true to delete it with all that is in it.',
  fileIsNoText: 'The file is not UTF-8 text. Get it with GET /v1/instances/{instance_id}/files/download.',
  fileTooLarge: (maxBytes: number) =>
    `The file is too large. files/content reads and writes up to 1 MiB of text, files/upload takes up to ${maxBytes} bytes, and files/download has no limit.`,
  fileChanges: 'The file became shorter while it was read. Try again.',
  diskFull: 'The disk that the instance is on is full. Delete files and try again.',
  noSuchRange: (size: number) => `The file has ${size} bytes and none of that range.`,
  clientLeft: 'The client has left.',
  filesTooSlow: 'The sandbox did not answer in time.',
  sendForm: 'Send the file as multipart/form-data with the fields path and file.',
  brokenForm: 'The form must have exactly the fields path (text) and file, each once, and be complete.',
  skillNotFound: 'Skill not found.',
  noSuchSkill: (slug: string) =>
    `The registry has no skill with the slug ${slug}. Look for it with GET …/skills/search.`,
  ambiguousSkill: (slug: string, names: readonly string[]) =>
    `More than one skill has the slug ${slug}. Say which one: ${names.join(', ')}.`,
  skillRefused: (skill: string, why: string) => `${skill} is not installed: ${why}.`,
  skillUnverified: (skill: string, why: string) =>
    `${skill} is not installed: ${why}. Send "allow_unverified": true to install it at your own risk.`,
  skillInstalled: (name: string, version: string) =>
    `The skill ${name} is installed already, in version ${version}. Change its version with POST …/skills/${name}/update.`,
  skillUpToDate: (name: string, version: string) => `${name} is at version ${version} already.`,
  otherSkillInstalled: (other: string) => `${other} is installed and uses the same folder. Uninstall it first.`,
  skillFolderTaken: (slug: string) =>
    `The folder skills/${slug} holds a skill that did not come from the registry. Move or delete it first.`,
  skillNotInstalled:
    'The skill did not come from the registry. Disable it instead ("enabled": false), or change its files if it is in the workspace.',
} as const
