import type { AboutApi } from '#http/openapi.ts'
import { version } from '#platform/version.ts'

/** Operations in the order in which a reader needs them; the sections are those of the tags. */
const operationOrder = [
  ...['signUp', 'getOrganization', 'updateOrganization', 'testModelApiKeys', 'deleteOrganization', 'listEvents'],
  ...['getCurrentKey', 'createKey', 'listKeys', 'getKey', 'updateKey', 'revokeKey'],
  ...['createOrganizationKey', 'listOrganizationKeys', 'revokeOrganizationKey'],
  ...['createInstance', 'listInstances', 'getInstance', 'getInstanceStatus', 'updateInstance', 'startInstance'],
  ...['stopInstance', 'restartInstance', 'deleteInstance', 'listInstanceEvents', 'readLogs'],
  ...['readMetrics', 'listReleases', 'listModels'],
  ...['createResponse', 'createSessionResponse', 'connectResponses', 'connectSessionResponses'],
  ...['createChatCompletion', 'listInstanceModels', 'getResponse', 'listInputItems'],
  ...['cancelResponse', 'deleteResponse'],
  ...['listSessions', 'getSession', 'resetSession', 'deleteSession'],
  ...['listChannels', 'getChannelInfo', 'connectChannel', 'getChannelStatus', 'getChannelQrCode'],
  ...['listPendingPairings', 'pairChannel', 'disconnectChannel', 'logOutChannel'],
  ...['searchSkills', 'installSkill', 'listSkills', 'getSkill', 'configureSkill', 'updateSkill', 'uninstallSkill'],
  ...['listFiles', 'statFile', 'readFile', 'writeFile', 'uploadFile', 'downloadFile', 'moveFile', 'makeDirectory'],
  ...['deleteFile', 'getSubscription', 'createCheckout', 'createPortal', 'receiveStripeEvent'],
  ...['getHealth', 'getReadiness'],
]

/** The text above the reference, and the order of its sections and calls. */
export const about: AboutApi = {
  operationOrder,
  info: {
    title: 'Chowder API',
    version,
    description: `Chowder runs [OpenClaw](https://www.npmjs.com/package/openclaw) agents for your customers. An **instance** is
one agent: an OpenClaw gateway in its own sandbox, with its own memory, files, skills and chat channels. You create
instances, Chowder keeps them running, and you talk to them in the OpenAI Responses format.

## Keys

Send a key with every call: \`Authorization: Bearer <key>\`.

- An organization key, \`chd_org_…\`, has every permission in its organization. It is for your backend.
- A scoped key, \`chd_sk_…\`, has its own permissions on its own instances. It is for a bot or a third party that you trust with these instances.

The signup returns the first organization key. A scoped key has any of five permissions: \`read\`, \`interact\`,
\`configure\`, \`files\` and \`channels\`; no permission includes another. Each key is shown once;
\`GET /v1/key\` tells what a key is and what it may do.

## Errors

Every failure has a \`detail\` for people: a sentence, \`{"error": …}\` when the gateway of an instance is the cause, or
a list of faults with a 422. Beside it, \`error\` is for programs: \`{type, code, param, message, doc_url, request_id}\`.
\`code\` names the reason, such as \`instance_not_running\`; the page [/docs/errors](/docs/errors) says of each what it
means, what to do, and whether to repeat the call. More codes may come: treat one that you do not know as its status.
\`param\` names the field at fault, if it is one. \`request_id\` is the \`x-request-id\` of the answer: the one that you
sent, or a new one. A resource of another organization answers 404, like one that does not exist.

## Repeating calls

Repeat 429 and 503 after \`Retry-After\` seconds. You can always repeat reads, PUT, PATCH and DELETE. Every POST except
sign-up, turns and uploads accepts an \`Idempotency-Key\` header: within 24 hours the same key, path and body give the
same answer, and change nothing again. Do not repeat a call whose answer has \`x-should-retry: false\`: a turn may have
begun.

## Lists

Lists are JSON arrays. With \`limit\` they come in pages: follow the \`Link\` header with \`rel="next"\`, or send
the \`X-Next-Cursor\` header as \`cursor\`, until the answer has none.`,
  },
  servers: [{ url: '/', description: 'The server of this document.' }],
  tags: [
    {
      name: 'organization',
      'x-displayName': 'Organization',
      description: 'Sign up, and store the keys of your model providers.',
    },
    {
      name: 'keys',
      'x-displayName': 'Keys',
      description: 'Scoped keys for bots and third parties, and other organization keys.',
    },
    {
      name: 'instances',
      'x-displayName': 'Instances',
      description: 'Create agents, start, stop, configure and delete them.',
    },
    {
      name: 'responses',
      'x-displayName': 'Responses',
      description:
        'Talk to an agent in the OpenAI Responses format, plain, streamed or over a WebSocket, and read its responses ' +
        'again. Chat Completions are supported too.',
    },
    {
      name: 'sessions',
      'x-displayName': 'Sessions',
      description: 'The conversations of an agent: read, reset and delete them.',
    },
    {
      name: 'channels',
      'x-displayName': 'Channels',
      description: 'Connect an agent to Telegram, WhatsApp, Slack and other chat platforms.',
    },
    {
      name: 'skills',
      'x-displayName': 'Skills',
      description: 'The abilities of an agent: install skills from ClawHub and configure them.',
    },
    { name: 'files', 'x-displayName': 'Files', description: 'The files in the workspace of an agent.' },
    {
      name: 'subscription',
      'x-displayName': 'Subscription',
      description: 'The plan, its limits, and the Stripe pages to change it.',
    },
    { name: 'operations', 'x-displayName': 'Operations', description: 'For the operator of this server.' },
  ],
}
