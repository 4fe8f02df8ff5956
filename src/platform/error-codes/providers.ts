import { codesOf } from '#platform/error-codes/kinds.ts'

const afterProgress = 'Only if the agent has not done what you asked for: read the session.'

export const providerCodes = {
  ...codesOf('invalid', {
    model_not_found: {
      meaning: 'The model provider does not know the model, or the key of the organization may not use it.',
      remedy: 'Choose a model that the provider offers to your account. `detail` has what the provider says.',
    },
    provider_refused_request: {
      meaning: 'The model provider calls the request of the agent invalid.',
      remedy: '`detail` has what the provider says. A conversation that is too long is reset with `…/reset`.',
    },
    provider_key_invalid: {
      meaning: 'The model provider refuses a key that was to be stored. Nothing was changed. `param` names the field.',
      remedy: 'Copy the whole key from the console of the provider, and check that it is of this provider.',
      repeat: 'Only with another key.',
    },
  }),
  ...codesOf('too_large', {
    provider_request_too_large: {
      meaning: 'The request of the agent is larger than the model provider accepts.',
      remedy: 'Send less, or reset the session: a long conversation is sent whole.',
    },
  }),
  ...codesOf('rate_limited', {
    provider_rate_limited: {
      meaning:
        'The model provider refuses more requests with the key of the organization. It is no limit of this server.',
      remedy: 'Wait as long as `Retry-After` says, or raise the limit of the account with the provider.',
      repeat: 'Yes, after `Retry-After` seconds, unless the answer has `x-should-retry: false`: the agent had acted.',
    },
  }),
  ...codesOf('gateway_unreachable', {
    provider_key_refused: {
      meaning: 'The model provider refuses the key of the organization.',
      remedy: 'Set a valid one: `PATCH /v1/organization` with `model_api_keys`. Agents use it at their next turn.',
      repeat: 'After you have set another key.',
    },
    provider_no_credit: {
      meaning: 'The model provider refuses the turn over billing.',
      remedy: "Check the credit and the plan of the provider's account.",
      repeat: 'After the account has credit.',
    },
    provider_overloaded: {
      meaning: 'The model provider is overloaded. The agent has tried twice.',
      remedy: 'Wait a moment.',
      repeat: afterProgress,
    },
    provider_unreachable: {
      meaning: 'The model provider cannot be reached, did not answer in time, or its answer broke off.',
      remedy: 'Wait a moment, and see the status page of the provider.',
      repeat: afterProgress,
    },
    provider_error: {
      meaning: 'The model provider failed.',
      remedy: 'Wait a moment, and see the status page of the provider.',
      repeat: afterProgress,
    },
  }),
  ...codesOf('unavailable', {
    provider_key_on_hold: {
      meaning: 'The model provider refused the key a moment ago, and the agent does not ask it again at once.',
      remedy: 'Wait as long as `Retry-After` says, or set another key, which is used at once.',
    },
  }),
}
