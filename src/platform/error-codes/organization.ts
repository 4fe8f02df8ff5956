import { codesOf } from './kinds.ts'

/** Of an organization: its keys, its limit, its subscription. */
export const organizationCodes = {
  ...codesOf('invalid', {
    no_provider_key: {
      meaning: 'The organization has no key for the model provider of the instance.',
      remedy: 'Set it: `PATCH /v1/organization` with `{"model_api_keys": {"<provider>": "<key>"}}`.',
      repeat: 'After you have set the key.',
    },
    organization_name_mismatch: {
      meaning: '`name` is not the name of the organization that is to be deleted.',
      remedy: 'Read the name with `GET /v1/organization`, and repeat it exactly.',
    },
    invalid_budget: {
      meaning: 'Two budgets of one owner have the same name.',
      remedy: 'Give each budget a name of its own.',
    },
    unknown_instances: {
      meaning: '`instance_ids` names instances that are not of this organization, or are terminated.',
      remedy: '`detail` lists them. Take ids from `GET /v1/instances`.',
    },
    permission_beyond_sessions: {
      meaning: 'A key with `session_ids` or `session_prefix` was to have a permission that reaches beyond sessions.',
      remedy: 'Ask for `interact` and `sessions` only, or create another key for the rest.',
    },
    sessions_required: {
      meaning: 'A client token was asked for without `session_ids` and `session_prefix`.',
      remedy: 'Send one of them: a client token is for some sessions only.',
    },
    sessions_beyond_key: {
      meaning: 'The client token was to be for sessions that do not exist for the key that makes it.',
      remedy: 'Ask for sessions of the key, which `GET /v1/key` tells.',
    },
    invalid_expiry: {
      meaning: '`expires_at` is not a time, or is in the past.',
      remedy: 'Send an ISO 8601 time with a zone, in the future: `2026-12-31T23:59:59Z`.',
    },
    no_billing_account: {
      meaning: 'The organization has never subscribed, so there is nothing to manage at Stripe.',
      remedy: 'Subscribe first: `POST /v1/subscription/checkout`.',
    },
    invalid_stripe_signature: {
      meaning: 'The event is not signed by Stripe, or its signature is older than 5 minutes.',
      remedy: 'The operator compares `STRIPE_WEBHOOK_SECRET` with the secret of the endpoint at Stripe.',
    },
  }),
  ...codesOf('unauthenticated', {
    invalid_signup_token: {
      meaning: 'Signing up on this server takes its token, and the request has none, or another one.',
      remedy:
        'Send it in the header `X-Signup-Token`. The operator of the server prints it with ' +
        '`npm run admin -- signup-token`.',
      repeat: 'Only with the token.',
    },
  }),
  ...codesOf('forbidden', {
    signup_closed: {
      meaning: 'Nobody can sign up on this server.',
      remedy: 'Ask its operator for an organization: `npm run admin -- create-org`.',
      repeat: 'After the operator has opened sign-up.',
    },
    one_organization: {
      meaning: 'The agents of this server are not isolated from each other: it takes no second organization.',
      remedy:
        'Its operator lets agents run in jails, which the first lines of its output tell about, or sets ' +
        '`ALLOW_UNISOLATED=1`.',
      repeat: 'After the operator has done so.',
    },
  }),
  ...codesOf('limit_reached', {
    limit_reached: {
      meaning: 'The organization has used up what its plan allows.',
      remedy: 'Change the plan: `POST /v1/subscription/checkout`, or `/portal` if you have one.',
    },
    instance_limit_reached: {
      meaning: 'The organization has as many instances as its plan allows. Stopped instances count too.',
      remedy:
        'Delete an instance, or change the plan: `POST /v1/subscription/checkout`, or `/portal` if you have one. On a ' +
        'server without billing its operator raises the limit: `npm run admin -- set-limit`.',
    },
    budget_exceeded: {
      meaning:
        'A hard budget is used up: of the organization, of the instance or of the end user. The turn ' +
        'did not reach the agent or, if its agent was already at work, a call of a model was refused.',
      remedy:
        '`detail` names the budget and the time from which on it allows calls again. An organization key may raise it ' +
        'meanwhile: `PATCH` with `budgets` on the organization or the instance.',
      repeat: 'After the time that `detail` names, or once the budget is raised.',
    },
  }),
  ...codesOf('not_found', {
    key_not_found: {
      meaning: 'The organization has no key with this id.',
      remedy: 'Take the id from `GET /v1/keys` or `GET /v1/organization/keys`.',
    },
  }),
  ...codesOf('conflict', {
    key_revoked: {
      meaning: 'The key is revoked. That is for good.',
      remedy: 'Create another key: `POST /v1/keys`.',
      repeat: 'No.',
    },
    too_many_keys: {
      meaning: 'The organization has as many active keys as it may have.',
      remedy: 'Revoke keys that nobody uses, or give keys an expiry. `last_used_at` says which are in use.',
      repeat: 'After a key was revoked or has expired.',
    },
    last_organization_key: {
      meaning: 'It is the last active organization key. Without one, nobody could use the organization.',
      remedy: 'Create another first: `POST /v1/organization/keys`.',
      repeat: 'After there is another key.',
    },
    already_subscribed: {
      meaning: 'The organization has a subscription.',
      remedy: 'Change or cancel it at the address from `POST /v1/subscription/portal`.',
      repeat: 'No.',
    },
    tier_by_arrangement: {
      meaning: 'The tier of the organization was set by the operator of this server.',
      remedy: 'Ask the operator to change it.',
      repeat: 'No.',
    },
  }),
  ...codesOf('unavailable', {
    stripe_unavailable: {
      meaning: 'Stripe cannot be reached right now.',
      remedy: 'Wait, and try again.',
    },
    stripe_refused: {
      meaning: 'Stripe refused the request because a setting of this server is wrong.',
      remedy: "Report it to the operator: the server's log has the reason.",
      repeat: 'After the operator has changed the setting.',
    },
  }),
}
