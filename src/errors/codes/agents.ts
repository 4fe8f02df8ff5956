import { codesOf } from './kinds.ts'

/** Codes of an instance: its configuration, turns, model provider, files, channels and skills. */
export const agentCodes = {
  ...codesOf('invalid', {
    invalid_openclaw_config: {
      meaning:
        '`openclaw_config` is not accepted: OpenClaw refuses it, it sets something that Chowder sets itself, or it is ' +
        'malformed, too large or too deep. Nothing was changed.',
      remedy: '`detail` names the path, and the rule or the words of OpenClaw.',
    },
    openclaw_refused: {
      meaning: "OpenClaw calls the request invalid. `detail` has OpenClaw's own words.",
      remedy: 'Change what they name.',
    },
    model_not_found: {
      meaning:
        'The model cannot be used: the provider does not know it, has shut it down, does not offer it to the key of the ' +
        'organization, or is not the `model_provider` of the instance.',
      remedy: 'Name the model that `detail` names, or another one of `GET /v1/models`.',
    },
    provider_refused_request: {
      meaning: 'The model provider calls the request of the agent invalid.',
      remedy: '`detail` has what the provider says. A conversation that is too long is reset with `…/reset`.',
    },
    invalid_media: {
      meaning: 'An image or a file in the input cannot be fetched or read, or is of a type that is not accepted.',
      remedy: 'Send a `data:` URL in base64, or a public `http(s)` URL, of a type and size that `detail` names.',
    },
    previous_response_not_found: {
      meaning: '`previous_response_id` names a response that does not exist or is no longer stored.',
      remedy: 'Leave it out, or send the id of the latest response of the session. The session remembers without it.',
    },
    previous_response_not_latest: {
      meaning: '`previous_response_id` is not the latest response of this session. A conversation has no branches.',
      remedy: 'Send the id of the latest one, or leave the field out, or use another session.',
    },
    websocket_connection_limit_reached: {
      meaning: 'The WebSocket connection is 60 minutes old. The server closes it.',
      remedy: 'Open another connection, and continue with `previous_response_id`.',
    },
    websocket_required: {
      meaning: 'A plain GET came to the address of the WebSocket mode.',
      remedy: 'Connect with a WebSocket, or send the request as a POST.',
    },
    invalid_path: {
      meaning: 'The path leads out of the workspace, or names something that this call cannot use.',
      remedy:
        '`detail` names the rule. Send a path relative to the workspace, such as `notes/today.md`; `GET …/files` shows ' +
        'what is there.',
    },
    permission_denied: {
      meaning: 'The permissions of the file forbid the call, or the agent has put something into the place of a file.',
      remedy: '`detail` names the path. Let the agent change or remove it.',
    },
    file_not_text: {
      meaning: 'The file is not UTF-8 text.',
      remedy: 'Download it: `GET …/files/download`.',
    },
    channel_refused: {
      meaning: 'The chat platform refused the credentials, or OpenClaw the settings. Nothing was stored.',
      remedy: '`detail` has the reason. Correct the credentials.',
    },
    unknown_pairing_code: {
      meaning: 'No pending request has this pairing code. It was mistyped, was used, or is older than an hour.',
      remedy: 'Ask the person to write to the agent again, which sends a new code.',
    },
    unknown_skill: {
      meaning: 'The registry has no such skill or version, or more than one skill of this slug.',
      remedy: 'Search for it: `GET …/skills/search`. Send the slug with its owner where `detail` lists several.',
    },
    skill_refused: {
      meaning:
        'The skill cannot be used: the registry withholds it, its security scan found it malicious, or OpenClaw could ' +
        'not install the published files.',
      remedy: '`detail` has the reason. Choose another version, or another skill.',
    },
    skill_unverified: {
      meaning:
        'The security scan of the registry has not found the skill to be safe, or the registry does not list its files.',
      remedy: 'Read the skill, and send `"allow_unverified": true` to install it at your own risk.',
    },
    skill_not_from_registry: {
      meaning: 'The skill was not installed from the registry, so it cannot be updated or uninstalled.',
      remedy: 'Disable it with `"enabled": false`, or change its files in the workspace.',
    },
  }),
  ...codesOf('not_found', {
    instance_not_found: {
      meaning: 'The organization of the key has no instance with this id. `message` says when the id cannot be one.',
      remedy: 'Take the id from `GET /v1/instances`. If it is empty in your request, check the variable that holds it.',
    },
    response_not_found: {
      meaning: 'The instance has no stored response with this id. Responses are stored unless `store` is false.',
      remedy: 'Check the id and the instance. Responses expire after 30 days.',
    },
    session_not_found: {
      meaning: 'The agent has no session with this id.',
      remedy: 'Take the id from `GET …/sessions`. A session begins with its first turn.',
    },
    file_not_found: {
      meaning: 'The workspace has no such file or directory.',
      remedy: 'List the directory with `GET …/files`.',
    },
  }),
  ...codesOf('conflict', {
    instance_not_running: {
      meaning: 'The call needs a running instance or, for its files, one that has run. `detail` has its status.',
      remedy: 'Start it with `POST …/start`, or wait: `GET …/status?wait=running`.',
    },
    wrong_instance_status: {
      meaning: 'The status of the instance does not allow this start, stop or restart.',
      remedy: '`detail` has the status, and what to do.',
    },
    session_reset: {
      meaning: 'The session of the turn was reset or deleted while the turn ran.',
      remedy: 'Send the turn again if it is still wanted: it begins a new conversation.',
    },
    instance_stopping: {
      meaning: 'The instance was stopped or deleted during the turn, which ended with it.',
      remedy: 'Start it with `POST …/start`, read the session, and send the turn again if it is still wanted.',
    },
    instance_terminated: {
      meaning: 'The instance was deleted. That is for good.',
      remedy: 'Create another: `POST /v1/instances`.',
    },
    region_closed: {
      meaning: 'The operator has closed the region for new instances, or for starts.',
      remedy: '`GET /v1/regions` says which regions take new instances.',
    },
    release_refused: {
      meaning: 'This server does not start the OpenClaw of this release: it is too old.',
      remedy:
        '`detail` names its known vulnerabilities. `GET /v1/releases` says which releases start. The operator decides ' +
        'by `OPENCLAW_MIN_VERSION`.',
    },
    external_id_taken: {
      meaning: 'Another instance of your organization, which is not terminated, has this `external_id`.',
      remedy:
        '`detail` has its id. Use that instance, choose another `external_id`, or create with ' +
        '`"if_exists": "return"` to get the instance.',
    },
    resource_busy: {
      meaning: 'Another call is changing the instance or the session, or the agent is changing or has locked the file.',
      remedy: 'Send the request again a moment later. Nothing has changed.',
    },
    response_in_progress: {
      meaning: 'The response is still in progress.',
      remedy: 'Wait for its end, or cancel it: `POST …/responses/{response_id}/cancel`.',
    },
    response_ended: {
      meaning: 'The response has already ended, so it cannot be cancelled.',
      remedy: 'Read it: `GET …/responses/{response_id}`.',
    },
    destination_exists: {
      meaning: 'Something has the name of the destination.',
      remedy: 'Send `"overwrite": true` to replace a file by a file, or choose another name.',
    },
    directory_not_empty: {
      meaning: 'The directory is not empty, or a program has written into it while it was deleted.',
      remedy: 'Add `recursive=true` to delete it with its contents.',
    },
    channel_not_connected: {
      meaning: 'The channel is not connected.',
      remedy: 'Connect it first: `POST …/channels/{channel}/connect`.',
    },
    skill_already_installed: {
      meaning: 'The skill is installed already.',
      remedy: 'Change its version: `POST …/skills/{skill_name}/update`.',
    },
    skill_folder_taken: {
      meaning: 'Another skill uses the folder that this one needs.',
      remedy: 'Uninstall it, or move its folder away.',
    },
  }),
  ...codesOf('too_large', {
    provider_request_too_large: {
      meaning: 'The request of the agent is larger than the model provider accepts.',
      remedy: 'Send less, or reset the session: a long conversation is sent whole.',
    },
  }),
  ...codesOf('rate_limited', {
    session_busy: {
      meaning: 'As many turns of the session as may do so run or wait already, or others begin in it at this moment.',
      remedy: 'Send the turn after some of them have ended, or in another session.',
    },
    provider_rate_limited: {
      meaning:
        'The model provider refuses more requests with the key of the organization. It is no limit of this server.',
      remedy: 'Wait as long as `Retry-After` says, or raise the limit of the account with the provider.',
    },
  }),
  ...codesOf('gateway_unreachable', {
    gateway_unreachable: {
      meaning:
        'The gateway of the instance cannot be reached, failed, or sent an answer that cannot be read or is too large.',
      remedy: 'Read `GET …/status`. If the status stays `running` and the failure too, restart it: `POST …/restart`.',
    },
    provider_key_refused: {
      meaning: 'The model provider refuses the key of the organization.',
      remedy: 'Set a valid one: `PATCH /v1/organization` with `model_api_keys`. Agents use it at their next turn.',
    },
    provider_no_credit: {
      meaning: 'The model provider refuses the turn over billing.',
      remedy: "Check the credit and the plan of the provider's account.",
    },
    provider_error: {
      meaning: 'The model provider failed, is overloaded, cannot be reached, or broke off its answer.',
      remedy: '`detail` says which. Wait a moment, and see the status page of the provider.',
    },
    invalid_output: {
      meaning:
        "The agent's answer does not have the format that the request asks for, also after the agent was asked a second " +
        'time.',
      remedy: '`message` names the broken rule. Simplify the schema, or say in the message what each field is for.',
    },
    channel_unreachable: {
      meaning: 'The chat platform could not be reached, or did not answer in time.',
      remedy: '`detail` has the reason. Wait a moment.',
    },
    skill_registry_unreachable: {
      meaning: 'The skill registry does not answer, or its answer cannot be read.',
      remedy: 'Wait, and try again.',
    },
  }),
  ...codesOf('unavailable', {
    instance_restarting: {
      meaning: 'The instance was restarted during the turn, which ended with it.',
      remedy: 'Wait: `GET …/status?wait=running`. Read the session, and send the turn again if it is still wanted.',
    },
    turn_interrupted: {
      meaning:
        'The gateway of the instance ended during a background turn. What the agent has done until then remains. Nothing ' +
        'runs again that was not asked for.',
      remedy: 'Read the session, and send the turn again if it is still wanted.',
    },
    turn_not_begun: {
      meaning:
        'OpenClaw did not begin the turn, because something else changed its session at the same moment. The model was ' +
        'not asked.',
      remedy: 'Send it again.',
    },
    provider_key_on_hold: {
      meaning: 'The model provider refused the key a moment ago, and the agent does not ask it again at once.',
      remedy: 'Wait as long as `Retry-After` says, or set another key, which is used at once.',
    },
  }),
  ...codesOf('gateway_timeout', {
    gateway_timeout: {
      meaning:
        'The gateway or the sandbox of the instance did not answer in time, or hung during the turn and was restarted. ' +
        'The requested action may still happen.',
      remedy: 'Read the resource or the session to see whether it happened, and how far the agent came.',
    },
    turn_too_long: {
      meaning: 'The turn took longer than a turn may take.',
      remedy: 'Ask for less in one turn.',
    },
    turn_waited_too_long: {
      meaning: 'The turn waited for the earlier turns of its session for as long as a turn may take. It did not begin.',
      remedy: 'Send it again, or in another session.',
    },
  }),
  ...codesOf('no_space', {
    no_space: {
      meaning:
        'The disk that the instance uses is full, or its files, with what the call would write, need more than ' +
        'its `disk_mb`.',
      remedy:
        'Delete files of the instance, which counts within 30 seconds, raise `resources.disk_mb`, or ask the operator of ' +
        'this server for room.',
    },
    host_disk_full: {
      meaning: 'The disk of the server has almost no room left, and the rest is for its database.',
      remedy: 'Nothing that you can do: the operator of this server must make room.',
    },
  }),
  // Only stored responses have these two.
  ...codesOf('timed_out', {
    client_left: {
      meaning: 'The client closed its connection before the turn ended. Only a stored response has this code.',
      remedy: 'Keep the connection open until the last event. The agent may have acted already.',
    },
  }),
  ...codesOf('internal', {
    lost: {
      meaning: 'The server that ran the turn ended before the turn did. Only a stored response has this code.',
      remedy: 'Read the session to see how far the agent came: `GET …/sessions/{session_id}`.',
    },
  }),
}
