import { codesOf } from './kinds.ts'

/** Of any request: HTTP, keys, bodies. */
export const requestCodes = {
  ...codesOf('invalid', {
    invalid: {
      meaning: 'The request breaks a rule of this call.',
      remedy: '`detail` names the rule. Change the request.',
    },
    malformed_request: {
      meaning: 'The request is not valid HTTP.',
      remedy: 'Check the request line and the headers. An HTTP client library writes them correctly.',
    },
    invalid_time: {
      meaning: 'A time of the query is not in ISO 8601, or the range of times is empty or too long.',
      remedy: '`detail` names the rule. Send times such as `2026-02-14T16:00:00Z`, `from` before `to`.',
    },
    unknown_time_zone: {
      meaning: '`time_zone` is not the name of a time zone.',
      remedy: 'Send a name of the IANA database, such as `Europe/Berlin`, or leave it out for UTC.',
    },
    malformed_path: {
      meaning: 'A part of the path is not percent-encoded UTF-8, or is longer than 1,024 characters.',
      remedy: 'Encode each part of the path, with `encodeURIComponent` for example.',
    },
    invalid_json: {
      meaning: 'The body is not valid JSON, or is empty.',
      remedy: 'Send a JSON object. Let a JSON library write it instead of putting text together.',
    },
    unsupported_json: {
      meaning: 'The body is JSON that is not accepted: it is nested too deeply, or a text in it is not Unicode.',
      remedy: '`detail` says which of them. Send a flatter body, or whole characters in UTF-8.',
    },
    too_many_values: {
      meaning: 'The body has more values than any call needs: texts, numbers, lists and objects together.',
      remedy: '`detail` names the limit. Send fewer values, such as the latest part of a long conversation.',
    },
    unknown_cursor: {
      meaning: '`cursor` is not of this list.',
      remedy:
        'Take the cursor from the `Link` header of the page before, or leave it out to begin with the first page.',
    },
  }),
  ...codesOf('unauthenticated', {
    unauthenticated: {
      meaning: 'The request is not authenticated.',
      remedy: 'Send an active key in the header `Authorization: Bearer <key>`.',
    },
    missing_api_key: {
      meaning: 'The request has no API key.',
      remedy: 'Send one in the header `Authorization: Bearer <key>`. A variable that should hold it may be empty.',
    },
    invalid_api_key: {
      meaning: 'The API key is unknown, revoked or expired.',
      remedy: 'Send an active key. Keys of Chowder begin with `chd_org_` or `chd_sk_`; keys of model providers do not.',
    },
  }),
  ...codesOf('forbidden', {
    forbidden: {
      meaning: 'The key may not make this call.',
      remedy: '`detail` says why. Use a key that may.',
    },
    organization_disabled: {
      meaning: 'The operator of this server has disabled or suspended the organization.',
      remedy: 'Ask the operator to enable or resume it.',
      repeat: 'After that.',
    },
    needs_organization_key: {
      meaning: 'The call needs an organization key (`chd_org_…`), and this one is a scoped key.',
      remedy: 'Make the call in your backend, with an organization key.',
    },
    needs_key: {
      meaning: 'The call needs a key, and this is a client token.',
      remedy: 'Make the call in your backend, with a key.',
    },
    lacks_permission: {
      meaning: 'The scoped key lacks the permission that the call needs. `detail` names it.',
      remedy: 'Create a scoped key that has the permission: `POST /v1/keys`.',
    },
    key_not_for_instance: {
      meaning: 'The scoped key is for other instances than this one.',
      remedy: 'Create a scoped key that names the instance in `instance_ids`: `POST /v1/keys`.',
    },
    foreign_origin: {
      meaning: 'A browser made the call for a web page of another origin, which may not call this server.',
      remedy:
        'Make the call in your backend, or ask the operator of this server to add the origin of the page to ' +
        '`CORS_ALLOWED_ORIGINS`.',
      repeat: 'After the operator has added the origin.',
    },
    needs_scoped_key: {
      meaning:
        'A web page of another origin made the call without a scoped key (`chd_sk_…`). Whoever opens a page can read ' +
        'its key, so organization keys and sign-up are refused there.',
      remedy: 'Give the page a scoped key, and make other calls in your backend.',
    },
  }),
  ...codesOf('not_found', {
    not_found: {
      meaning: 'The resource does not exist, or belongs to another organization. The answer does not tell which.',
      remedy: 'Check the id, and that the key is of the organization that owns the resource.',
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
      remedy: 'Send it faster. An upload may take long, if 64 KiB of it arrive every 60 seconds.',
    },
  }),
  ...codesOf('conflict', {
    conflict: {
      meaning: 'The current state of the resource does not allow this call.',
      remedy: '`detail` names the state, and how to leave it.',
    },
    request_in_progress: {
      meaning: 'A request with the same `Idempotency-Key` is still in progress.',
      remedy: 'Send this one again a moment later: it then gets the answer of the first.',
      repeat: 'Yes, after `Retry-After` seconds.',
    },
  }),
  ...codesOf('too_large', {
    too_large: {
      meaning: 'The request is larger than this call accepts.',
      remedy: 'Send less. `detail` names the limit.',
    },
    instructions_too_large: {
      meaning: '`instructions` and `tools` of a turn are too long together: every response repeats them.',
      remedy: 'Send long texts in `input`. `detail` names the limit.',
    },
    body_too_large: {
      meaning: 'The body of the request is larger than this call accepts.',
      remedy: 'Send up to 1 MiB, to an agent up to 20 MiB, to sign up 64 KiB. A large file goes to `…/files/upload`.',
    },
  }),
  ...codesOf('unsupported_media', {
    unsupported_encoding: {
      meaning: 'The body is compressed, in another character set, or in an unknown transfer encoding.',
      remedy: 'Send the JSON as it is, in UTF-8, without `Content-Encoding`.',
    },
    unsupported_media: {
      meaning: 'This call does not accept the content type of the body.',
      remedy: 'Send the header `Content-Type: application/json`, and JSON.',
    },
    form_required: {
      meaning: 'An upload did not come as a form.',
      remedy: 'Send `multipart/form-data` with the fields `path` and `file`, in this order.',
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
      repeat: 'After the operator has added the host.',
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
      meaning: 'There were too many requests with this key, or from this address.',
      remedy: 'Send fewer requests. The header `RateLimit` says how many are left.',
    },
    too_much_in_flight: {
      meaning:
        'Your organization has too much at this server at once: turns, WebSockets, transfers, lists, or bytes of bodies.',
      remedy: 'Wait until some have ended. `detail` says what there is too much of, and the limit.',
    },
  }),
  ...codesOf('headers_too_large', {
    headers_too_large: {
      meaning: 'The headers of the request are larger than 16 KiB together.',
      remedy: 'Send fewer or shorter headers.',
    },
  }),
}
