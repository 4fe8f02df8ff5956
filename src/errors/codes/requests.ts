import { codesOf } from './kinds.ts'

/** Codes of HTTP, of the server, and of an organization, its keys and its subscription. */
export const requestCodes = {
  ...codesOf('invalid', {
    invalid: {
      meaning: 'The request breaks a rule of this call.',
      remedy: '`detail` names the rule. Change the request.',
    },
    malformed_request: {
      meaning: 'The request is not valid HTTP, or a part of its path is not percent-encoded UTF-8 or too long.',
      remedy: 'Let an HTTP client library write the request, and encode each part of the path.',
    },
    invalid_json: {
      meaning: 'The body is empty, is not valid JSON, is nested too deeply, or has a text that is not Unicode.',
      remedy: '`detail` says which. Send a JSON object that a JSON library has written.',
    },
    invalid_value: {
      meaning: 'A field or parameter has a value that cannot be used. `param` names it, where it is one.',
      remedy: '`detail` names the rule and, where there are few, the values that can be used.',
    },
    unknown_parameter: {
      meaning: 'The request has a field that this endpoint does not have. `param` names it.',
      remedy: 'Remove it, or correct its name.',
    },
    unsupported_value: {
      meaning: 'The agent, its model or the channel cannot do what a field of the request asks for.',
      remedy: 'Leave the field out, or send what `detail` names.',
    },
    no_provider_key: {
      meaning: 'The organization has no key for the model provider of the instance.',
      remedy: 'Set it: `PATCH /v1/organization` with `{"model_api_keys": {"<provider>": "<key>"}}`.',
    },
    provider_key_invalid: {
      meaning: 'The model provider refuses a key that was to be stored. Nothing was changed. `param` names the field.',
      remedy: 'Copy the whole key from the console of the provider, and check that it is of this provider.',
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
    missing_api_key: {
      meaning: 'The request has no API key.',
      remedy: 'Send one in the header `Authorization: Bearer <key>`. A variable that should hold it may be empty.',
    },
    invalid_api_key: {
      meaning: 'The API key is unknown, revoked or expired.',
      remedy: 'Send an active key. Keys of Chowder begin with `chd_org_` or `chd_sk_`; keys of model providers do not.',
    },
    invalid_signature: {
      meaning: 'A call of a hook is not signed with the secret of the hook, or was signed too long ago.',
      remedy: 'Give the service that calls the secret of the hook. `detail` names the header of the signature.',
    },
    invalid_signup_token: {
      meaning: 'Signing up on this server requires its sign-up token, and the request has none, or another one.',
      remedy:
        'Send it in the header `X-Signup-Token`. The operator of the server prints it with ' +
        '`npm run admin -- signup-token`.',
    },
  }),
  ...codesOf('limit_reached', {
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
    },
  }),
  ...codesOf('forbidden', {
    organization_suspended: {
      meaning: 'The operator of this server has suspended the organization.',
      remedy: 'Ask the operator to resume it.',
    },
    lacks_permission: {
      meaning:
        'The key may not make this call: it is for other instances, lacks the permission, is a client token, or is an ' +
        'organization key in a web page, whose readers could copy it.',
      remedy: '`detail` names the key that may. `POST /v1/keys` creates scoped keys; make other calls in your backend.',
    },
    foreign_origin: {
      meaning: 'A browser made the call for a web page of another origin, which may not call this server.',
      remedy:
        'Make the call in your backend, or ask the operator of this server to add the origin of the page to ' +
        '`CORS_ALLOWED_ORIGINS`.',
    },
    signup_closed: {
      meaning: 'This server takes no sign-ups. Where its agents run as one user, it has one organization only.',
      remedy:
        'Ask its operator for an organization: `npm run admin -- create-org`. For a second one agents need users of ' +
        'their own, or `LOCAL_ISOLATION=jail` or `none`.',
    },
  }),
  ...codesOf('not_found', {
    not_found: {
      meaning: 'The resource does not exist, or belongs to another organization. The answer does not say which.',
      remedy: 'Take its id or name from the list of such resources. Check that the key is of the right organization.',
    },
    unknown_route: {
      meaning: 'The API has no route with this method and path.',
      remedy: 'Compare them with the reference at `/docs`.',
    },
  }),
  ...codesOf('method_not_allowed', {
    method_not_allowed: {
      meaning: 'The path exists, and does not have this method.',
      remedy: 'The header `Allow` names the methods that it has.',
    },
  }),
  ...codesOf('timed_out', {
    timed_out: {
      meaning: 'The body of the request arrived too slowly.',
      remedy:
        'Send it faster: within 60 seconds. An uploaded file may take two hours, if it does not stall for 60 seconds.',
    },
  }),
  ...codesOf('conflict', {
    request_in_progress: {
      meaning: 'A request with the same `Idempotency-Key` is still in progress.',
      remedy: 'Send this one again after `Retry-After` seconds: it then gets the answer of the first.',
    },
    key_revoked: {
      meaning: 'The key is revoked. That is for good.',
      remedy: 'Create another key: `POST /v1/keys`.',
    },
    too_many_keys: {
      meaning: 'The organization has as many active keys as it may have.',
      remedy: 'Revoke unused keys, or give keys an expiry. `last_used_at` shows which are in use.',
    },
    too_many_resources: {
      meaning: 'The organization has as many webhooks, or the instance as many schedules or hooks, as it may have.',
      remedy: '`detail` says which. Delete one that is not needed.',
    },
    last_organization_key: {
      meaning: 'It is the last active organization key. The organization could not be used without one.',
      remedy: 'Create another first: `POST /v1/organization/keys`.',
    },
    already_subscribed: {
      meaning: 'The organization has a subscription.',
      remedy: 'Change or cancel it at the address from `POST /v1/subscription/portal`.',
    },
    tier_by_arrangement: {
      meaning: 'The tier of the organization was set by the operator of this server.',
      remedy: 'Ask the operator to change it.',
    },
  }),
  ...codesOf('too_large', {
    too_large: {
      meaning: 'The body, a file or a part of the request is larger, or has more values, than this call accepts.',
      remedy: '`detail` names the limit. Send less, or send a large file to `…/files/upload`.',
    },
  }),
  ...codesOf('unsupported_media', {
    unsupported_media: {
      meaning: 'This call does not accept the content type, the character set or the encoding of the body.',
      remedy:
        'Send JSON in UTF-8 with `Content-Type: application/json` and without `Content-Encoding`. An upload is ' +
        '`multipart/form-data` with the fields `path` and `file`.',
    },
  }),
  ...codesOf('no_such_range', {
    no_such_range: {
      meaning: 'The file has no bytes in the requested `Range`. `Content-Range` has the size of the file.',
      remedy: 'Request a range that is inside the file, or leave `Range` out.',
    },
  }),
  ...codesOf('expectation_failed', {
    expectation_failed: {
      meaning: 'The header `Expect` has a value other than `100-continue`.',
      remedy: 'Leave the header out.',
    },
  }),
  ...codesOf('unknown_host', {
    unknown_host: {
      meaning: 'The URL of the request names a host that this server does not answer to.',
      remedy:
        "Use the server's own address. Its operator adds further names to `CHOWDER_ALLOWED_HOSTS`, or sets " +
        '`CHOWDER_PUBLIC_URL`.',
    },
  }),
  ...codesOf('unprocessable', {
    unprocessable: {
      meaning: 'The agent cannot process the request.',
      remedy: '`detail` says why. Change the request.',
    },
    validation_failed: {
      meaning: 'The request does not fit its schema.',
      remedy: '`detail` lists up to 20 faults, each with its place in the request. Correct them.',
    },
    idempotency_key_reused: {
      meaning: 'The `Idempotency-Key` came with another request within the last 24 hours.',
      remedy: 'Send a new key with each new request. Send the same key only to repeat the same request.',
    },
  }),
  ...codesOf('rate_limited', {
    rate_limited: {
      meaning: 'There were too many requests with this key, from this address, or without effect on this WebSocket.',
      remedy: 'Send fewer requests. The header `RateLimit` says how many are left.',
    },
    too_much_in_flight: {
      meaning:
        'Too much is open at once: turns, WebSockets, transfers, lists, followed outputs, or bytes of bodies of your ' +
        'organization, or turns that wait on one WebSocket.',
      remedy: 'Wait until some have ended. `detail` says what there is too much of, and the limit.',
    },
  }),
  ...codesOf('headers_too_large', {
    headers_too_large: {
      meaning: 'The headers of the request are larger than 16 KiB together.',
      remedy: 'Send fewer or shorter headers.',
    },
  }),
  ...codesOf('internal', {
    internal: {
      meaning: 'This server has a fault. Its log has the cause, under the id in `request_id`.',
      remedy: 'Report the request id to the operator of this server.',
    },
  }),
  ...codesOf('not_implemented', {
    billing_not_configured: {
      meaning: 'This server sells no subscriptions: its operator has not set it up for Stripe.',
      remedy: 'The operator sets `STRIPE_SECRET_KEY` and its companions, or assigns tiers with `npm run admin`.',
    },
  }),
  ...codesOf('unavailable', {
    unavailable: {
      meaning:
        'This server or a service that it depends on is not available: its database, the platform that runs the agents, ' +
        'Stripe, the skill registry, or a plugin that could not be installed. Or an agent that was asleep takes more ' +
        'than a minute to start.',
      remedy: 'Wait. If it lasts, ask the operator of this server: its log has the reason.',
    },
    overloaded: {
      meaning: 'The server is busy with large requests, or with lists of your organization.',
      remedy: 'Wait a moment, and send fewer of them at once.',
    },
    shutting_down: {
      meaning: 'The server process is ending, for an upgrade for example.',
      remedy: 'Send the turn again: another process, or the next one, takes it.',
    },
  }),
}
