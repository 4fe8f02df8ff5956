interface Section {
  /** The tag of its operations. */
  name: string
  title: string
  description: string
}

/** The sections of the reference, in order. Within a section, calls have the order of their registration. */
export const sections: readonly Section[] = [
  {
    name: 'organization',
    title: 'Organization',
    description: 'Sign up, and store the keys of your model providers.',
  },
  {
    name: 'keys',
    title: 'Keys',
    description: 'Scoped keys for bots and third parties, and other organization keys.',
  },
  {
    name: 'instances',
    title: 'Instances',
    description: 'Create agents, start, stop, configure and delete them.',
  },
  {
    name: 'responses',
    title: 'Responses',
    description:
      'Talk to an agent in the OpenAI Responses format, plain, streamed or over a WebSocket, ' +
      'and read its responses again. Chat Completions are supported too.',
  },
  {
    name: 'approvals',
    title: 'Approvals',
    description: 'Commands of an agent that wait for a person.',
  },
  {
    name: 'schedules',
    title: 'Schedules',
    description: 'Turns that begin at their time: by cron, or once.',
  },
  {
    name: 'hooks',
    title: 'Hooks',
    description: 'Turns that other services begin: GitHub, Slack, or anyone who signs.',
  },
  {
    name: 'sessions',
    title: 'Sessions',
    description: 'The conversations of an agent: read, reset and delete them.',
  },
  {
    name: 'channels',
    title: 'Channels',
    description: 'Connect an agent to Telegram, WhatsApp, Slack and other chat platforms.',
  },
  {
    name: 'skills',
    title: 'Skills',
    description: 'The abilities of an agent: install skills from ClawHub and configure them.',
  },
  {
    name: 'files',
    title: 'Files',
    description: 'The files in the workspace of an agent.',
  },
  {
    name: 'webhooks',
    title: 'Webhooks',
    description: 'Get events by push, and see what was delivered.',
  },
  {
    name: 'subscription',
    title: 'Subscription',
    description: 'The plan, its limits, and the Stripe pages to change it.',
  },
  {
    name: 'operations',
    title: 'Operations',
    description: 'For the operator of this server.',
  },
]
