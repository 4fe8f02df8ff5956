interface Section {
  /** The tag of its operations. */
  name: string
  title: string
  description: string
  /** Operation ids, as a reader should meet them. */
  operations: readonly string[]
}

/** The sections of the reference, and the order of the calls in each. */
export const sections: readonly Section[] = [
  {
    name: 'organization',
    title: 'Organization',
    description: 'Sign up, and store the keys of your model providers.',
    operations: [
      'signUp',
      'getOrganization',
      'updateOrganization',
      'testModelApiKeys',
      'deleteOrganization',
      'listEvents',
      'readUsage',
    ],
  },
  {
    name: 'keys',
    title: 'Keys',
    description: 'Scoped keys for bots and third parties, and other organization keys.',
    operations: [
      'getCurrentKey',
      'createKey',
      'createClientToken',
      'listKeys',
      'getKey',
      'updateKey',
      'revokeKey',
      'createOrganizationKey',
      'listOrganizationKeys',
      'revokeOrganizationKey',
    ],
  },
  {
    name: 'instances',
    title: 'Instances',
    description: 'Create agents, start, stop, configure and delete them.',
    operations: [
      'createInstance',
      'listInstances',
      'getInstance',
      'getInstanceStatus',
      'updateInstance',
      'startInstance',
      'stopInstance',
      'restartInstance',
      'deleteInstance',
      'listInstanceEvents',
      'readLogs',
      'readMetrics',
      'readInstanceUsage',
      'getEgress',
      'allowEgress',
      'listReleases',
      'listRegions',
    ],
  },
  {
    name: 'responses',
    title: 'Responses',
    description:
      'Talk to an agent in the OpenAI Responses format, plain, streamed or over a WebSocket, ' +
      'and read its responses again. Chat Completions are supported too.',
    operations: [
      'createResponse',
      'createSessionResponse',
      'connectResponses',
      'connectSessionResponses',
      'createChatCompletion',
      'getResponse',
      'listInputItems',
      'cancelResponse',
      'deleteResponse',
      'listInstanceModels',
      'listModels',
    ],
  },
  {
    name: 'sessions',
    title: 'Sessions',
    description: 'The conversations of an agent: read, reset and delete them.',
    operations: ['listSessions', 'getSession', 'resetSession', 'deleteSession'],
  },
  {
    name: 'channels',
    title: 'Channels',
    description: 'Connect an agent to Telegram, WhatsApp, Slack and other chat platforms.',
    operations: [
      'listChannels',
      'getChannelInfo',
      'connectChannel',
      'getChannelStatus',
      'getChannelQrCode',
      'listPendingPairings',
      'pairChannel',
      'disconnectChannel',
      'logOutChannel',
    ],
  },
  {
    name: 'skills',
    title: 'Skills',
    description: 'The abilities of an agent: install skills from ClawHub and configure them.',
    operations: [
      'searchSkills',
      'installSkill',
      'listSkills',
      'getSkill',
      'configureSkill',
      'updateSkill',
      'uninstallSkill',
    ],
  },
  {
    name: 'files',
    title: 'Files',
    description: 'The files in the workspace of an agent.',
    operations: [
      'listFiles',
      'statFile',
      'readFile',
      'writeFile',
      'uploadFile',
      'downloadFile',
      'moveFile',
      'makeDirectory',
      'deleteFile',
    ],
  },
  {
    name: 'subscription',
    title: 'Subscription',
    description: 'The plan, its limits, and the Stripe pages to change it.',
    operations: ['getSubscription', 'createCheckout', 'createPortal', 'receiveStripeEvent'],
  },
  {
    name: 'operations',
    title: 'Operations',
    description: 'For the operator of this server.',
    operations: ['getHealth', 'getReadiness'],
  },
]
