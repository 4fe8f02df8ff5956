import type { AboutApi } from '#http/openapi.ts'
import { version } from '#platform/version.ts'
import { sections } from './sections.ts'

/** Shell commands; `URL` holds the address of a server. The lines fit the column of the page: 62 characters. */
const firstCalls = `\`\`\`bash
json='content-type: application/json'

# 1. An organization. KEY is the "api_key" of the answer.
#    It is shown once.
curl -s $URL/v1/organization/signup -H "$json" \\
  -d '{"name": "Acme"}'

# 2. The key of a model provider: anthropic, openai or gemini.
auth="authorization: Bearer $KEY"
keys='{"model_api_keys": {"anthropic": "'$ANTHROPIC_API_KEY'"}}'
curl -s -X PATCH $URL/v1/organization -H "$auth" -H "$json" \\
  -d "$keys"

# 3. An agent. ID is the "id" of the answer, which comes at
#    once: its "status" is "provisioning".
curl -s $URL/v1/instances -H "$auth" -H "$json" \\
  -d '{"name": "my-assistant"}'

# 4. Wait until "status" is "running": repeat the call while
#    it is "provisioning".
curl -s -H "$auth" \\
  "$URL/v1/instances/$ID/status?wait=running&timeout=60"

# 5. Talk to it. It remembers the conversation. Another one:
#    /v1/instances/$ID/session/<any name>/responses
curl -s $URL/v1/instances/$ID/responses -H "$auth" -H "$json" \\
  -d '{"model": "openclaw", "input": "Remember 42."}'
\`\`\``

/** The text above the reference, and its sections. */
export const about: AboutApi = {
  info: {
    title: 'Chowder API',
    version,
    description: `Chowder runs [OpenClaw](https://www.npmjs.com/package/openclaw) agents for your customers. An
**instance** is one agent: an OpenClaw gateway in its own sandbox, with its own memory, files, skills and chat channels.
You create instances, Chowder keeps them running, and you talk to them in the OpenAI Responses format. The [guides](/docs/guides)
say more than this reference.

## Five minutes

\`URL\` is the address of this server.

${firstCalls}

\`"model"\` is \`openclaw\` for the model of the instance, or any model of its provider. \`"stream": true\` streams
server-sent events. An OpenAI client works with the base URL \`$URL/v1/instances/$ID\`.

## Statuses of an instance

- \`provisioning\`: a worker prepares the agent; \`step\` says what it does. Then it is \`running\` or \`error\`.
- \`running\`: the agent takes messages. You can stop or restart it.
- \`stopped\`: you stopped it. Its files and its memory are kept. You can start it.
- \`error\`: it could not be started; \`error_message\` has the reason. A start tries again.
- \`terminated\`: you deleted it, with everything in it. Nothing leads out of that. You can delete an instance in any
  other status.

## Keys

Send a key with every call: \`Authorization: Bearer <key>\`.

- An organization key, \`chd_org_…\`, has every permission in its organization. It is for your backend.
- A scoped key, \`chd_sk_…\`, has its own permissions on its own instances. It is for a bot or a third party that you
  trust with these instances. With \`session_ids\` or \`session_prefix\` only those sessions exist for it.
- A client token, \`chd_ct_…\`, is for the browser of one person. Your backend makes it with a key
  (\`POST /v1/instances/{id}/client_tokens\`). It may only talk to the agent in the sessions that it names, expires
  within an hour, and ends with its key.

Whoever may talk to an agent may have it do whatever the agent may do: run programs, read and write its files, and use
its skills, its channels and what it remembers of all sessions in its files.

The sign-up returns the first organization key. On a server that others than its operator reach, it takes the token
of the operator in the header \`X-Signup-Token\`, or is closed. A scoped key has any of six permissions: \`read\`,
\`interact\`, \`sessions\`, \`configure\`, \`files\` and \`channels\`; no permission includes another. To list,
read, reset and delete sessions takes \`sessions\`; to talk takes \`interact\`. Each key is shown once;
\`GET /v1/key\` shows the kind of a key and its permissions. A web page may use a scoped key if the operator of this server
allows its origin, and never an organization key.

## Errors

Every failure has a \`detail\` for people: a sentence, \`{"error": …}\` when the gateway of an instance is the cause,
or a list of faults with a 422. Beside it, \`error\` is for programs:
\`{type, code, param, message, doc_url, request_id}\`.
\`code\` names the reason, such as \`instance_not_running\`; the page [/docs/errors](/docs/errors) says of each what it
means, what to do, and whether to repeat the call. More codes may come: treat one that you do not know as its status.
\`param\` names the field at fault, if it is one. \`request_id\` is the \`x-request-id\` of the answer: the one that you
sent, or a new one. A resource of another organization answers 404, like one that does not exist.

## Repeating calls

Repeat 429 and 503 after \`Retry-After\` seconds. You can always repeat reads, PUT, PATCH and DELETE. Every POST except
sign-up, uploads, client tokens and calls of hooks accepts an \`Idempotency-Key\` header: within 24 hours the same key, path and body
give the same answer, and change nothing again. Do not repeat a call whose answer has \`x-should-retry: false\`: a
turn may have begun.

## Lists

Lists are JSON arrays. With \`limit\` they come in pages: follow the \`Link\` header with \`rel="next"\`, or send
the \`X-Next-Cursor\` header as \`cursor\`, until the answer has none.

## Changes

Within \`/v1\`, new calls, fields, optional parameters and values of an enum may come at any time: ignore those that you
do not know. What is there keeps its name and its meaning.`,
  },
  servers: [{ url: '/', description: 'The server of this document.' }],
  tags: sections.map(({ name, title, description }) => ({ name, 'x-displayName': title, description })),
}
