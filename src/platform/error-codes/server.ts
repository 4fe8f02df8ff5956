import { codesOf } from './kinds.ts'

/** Of this server. */
export const serverCodes = {
  ...codesOf('internal', {
    internal: {
      meaning: 'This server has a fault. Its log has the cause, under the id in `request_id`.',
      remedy: 'Report the request id to the operator of this server.',
    },
  }),
  ...codesOf('not_implemented', {
    not_implemented: {
      meaning: 'This server is not configured for this call.',
      remedy: '`detail` names what is missing. The operator of this server can set it.',
    },
    billing_not_configured: {
      meaning: 'This server sells no subscriptions: its operator has not set it up for Stripe.',
      remedy: 'The operator sets `STRIPE_SECRET_KEY` and its companions, or assigns tiers with `npm run admin`.',
    },
  }),
  ...codesOf('unavailable', {
    unavailable: {
      meaning: 'A service that this server depends on is not available.',
      remedy: 'Wait. If it lasts, ask the operator of this server.',
    },
    database_unavailable: {
      meaning: 'The database of this server is not available right now.',
      remedy: 'Wait. If it lasts, ask the operator of this server.',
    },
    overloaded: {
      meaning: 'The server is busy with large requests.',
      remedy: 'Wait a moment, and send fewer of them at once.',
    },
    sandboxes_unavailable: {
      meaning: 'The platform that runs the agents, such as Docker, is not available right now, or is overloaded.',
      remedy: 'Wait. If it lasts, ask the operator of this server.',
    },
    shutting_down: {
      meaning: 'The server process is ending, for an upgrade for example.',
      remedy: 'Send the turn again: another process, or the next one, takes it.',
    },
  }),
}
