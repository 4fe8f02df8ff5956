import { codesOf } from './kinds.ts'

/** Of the turns of an agent, and what is stored of them. */
export const turnCodes = {
  ...codesOf('invalid', {
    unknown_parameter: {
      meaning: 'The request has a field that this endpoint does not have. `param` names it.',
      remedy: 'Remove it, or correct its name.',
    },
    unsupported_value: {
      meaning: 'An agent cannot do what a field of the request asks for. `param` names the field.',
      remedy: 'Leave the field out, or send what `detail` names.',
    },
    invalid_value: {
      meaning: 'A field of the request has a value that cannot be used. `param` names the field.',
      remedy: '`detail` names the rule.',
    },
    invalid_media: {
      meaning: 'An image or a file in the input cannot be read, or is of a type that is not accepted.',
      remedy: 'Send a `data:` URL in base64, or an `http(s)` URL, of a type that `detail` names.',
    },
    images_not_supported: {
      meaning: 'The model does not see images.',
      remedy: 'Choose a model that does, or describe the image in words.',
    },
    media_refused: {
      meaning: 'OpenClaw could not fetch, or did not accept, an image or a file in the input.',
      remedy: 'Check that its URL is public and its size within the limits, or send it as a `data:` URL.',
    },
    tool_name_taken: {
      meaning: "A tool of the request has the name of one of the agent's own tools.",
      remedy: 'Give the tool another name.',
    },
    unknown_item: {
      meaning: 'The input refers to an item or to a call that the session does not have.',
      remedy: 'Send the item itself, or an id from a response of this session.',
    },
    invalid_session_id: {
      meaning: 'The session id in the path is empty, longer than 200 bytes of UTF-8, or not Unicode.',
      remedy: "Choose a shorter one, such as your user's id.",
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
      repeat: 'Yes, on another connection.',
    },
    websocket_required: {
      meaning: 'A plain GET came to the address of the WebSocket mode.',
      remedy: 'Connect with a WebSocket, or send the request as a POST.',
    },
    invalid_frame: {
      meaning: 'A frame of the WebSocket is binary, or not of the type `response.create`.',
      remedy: 'Send each request as JSON in a text frame: `{"type": "response.create", …}`.',
    },
  }),
  ...codesOf('not_found', {
    response_not_found: {
      meaning: 'The instance has no stored response with this id. Responses are stored unless `store` is false.',
      remedy: 'Check the id and the instance. Responses expire after 30 days.',
    },
    session_not_found: {
      meaning: 'The agent has no session with this id.',
      remedy: 'Take the id from `GET …/sessions`. A session begins with its first turn.',
    },
  }),
  ...codesOf('conflict', {
    response_in_progress: {
      meaning: 'The response is still in progress.',
      remedy: 'Wait for its end, or cancel it: `POST …/responses/{response_id}/cancel`.',
      repeat: 'After the response has ended.',
    },
    response_ended: {
      meaning: 'The response has already ended, so it cannot be cancelled.',
      remedy: 'Read it: `GET …/responses/{response_id}`.',
      repeat: 'No.',
    },
  }),
  ...codesOf('too_large', {
    media_too_large: {
      meaning: 'An image or a file in the input is larger than OpenClaw accepts.',
      remedy: 'Send a smaller one. `detail` names the limit. A large file goes to `…/files/upload`.',
    },
  }),
  ...codesOf('rate_limited', {
    too_many_waiting_turns: {
      meaning: 'Too many turns wait on this WebSocket connection.',
      remedy: 'Send the next turn after the running one has ended, or open another connection.',
      repeat: 'After the running turn has ended.',
    },
    too_many_refused_frames: {
      meaning: 'In a WebSocket connection, 100 frames in a row began no turn. The server closes it.',
      remedy: 'Read the errors that the frames got, then open another connection.',
      repeat: 'On another connection, once the cause is mended.',
    },
    session_busy: {
      meaning: 'As many turns of the session as may do so run or wait already, or others begin in it at this moment.',
      remedy: 'Send the turn after some of them have ended, or in another session.',
      repeat: 'Yes, after `Retry-After` seconds.',
    },
  }),
  ...codesOf('unavailable', {
    turn_not_begun: {
      meaning:
        'OpenClaw did not begin the turn, because something else changed its session at the same moment. The model was ' +
        'not asked.',
      remedy: 'Send it again.',
      repeat: 'Yes, after `Retry-After` seconds.',
    },
  }),
  ...codesOf('gateway_unreachable', {
    broken_answer: {
      meaning: 'The gateway of the instance sent an answer that cannot be read, is too large, or ends too early.',
      remedy:
        'Read the session to see how far the agent came. If it happens again, restart the instance: `POST …/restart`.',
      repeat: 'Only if the agent has not done what you asked for.',
    },
  }),
  ...codesOf('gateway_timeout', {
    gateway_hung: {
      meaning:
        'The gateway of the instance hung during the turn and was restarted, or it has answered nothing for 10 minutes.',
      remedy: 'Wait until the instance is `running`. Read the session to see how far the agent came.',
      repeat: 'Only if the agent has not done what you asked for.',
    },
    turn_too_long: {
      meaning: 'The turn took longer than a turn may take.',
      remedy: 'Ask for less in one turn.',
      repeat: 'Only if the agent has not done what you asked for.',
    },
    turn_waited_too_long: {
      meaning: 'The turn waited for the earlier turns of its session for as long as a turn may take. It did not begin.',
      remedy: 'Send it again, or in another session.',
      repeat: 'Yes. The agent was not asked.',
    },
  }),
  // Only stored responses have these two.
  ...codesOf('timed_out', {
    client_left: {
      meaning: 'The client closed its connection before the turn ended. Only a stored response has this code.',
      remedy: 'Keep the connection open until the last event. The agent may have acted already.',
      repeat: 'Yes, if you still want the answer.',
    },
  }),
  ...codesOf('internal', {
    lost: {
      meaning: 'The server that ran the turn ended before the turn did. Only a stored response has this code.',
      remedy: 'Read the session to see how far the agent came: `GET …/sessions/{session_id}`.',
      repeat: 'Only if the agent has not done what you asked for.',
    },
  }),
}
