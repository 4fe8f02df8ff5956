import { codesOf } from './kinds.ts'

/** Of an instance, its configuration and its gateway. */
export const instanceCodes = {
  ...codesOf('invalid', {
    unknown_release: {
      meaning: 'This server has no OpenClaw of this `openclaw_version`.',
      remedy: '`detail` lists the versions that it has. Leave the field out to get the newest one.',
    },
    unknown_region: {
      meaning: 'This server has no `region` of this name.',
      remedy: '`detail` lists the regions that it has. Leave the field out to get the default one.',
    },
    invalid_openclaw_config: {
      meaning: '`openclaw_config` sets something that Chowder sets itself, or is malformed, too large or too deep.',
      remedy: '`detail` names the path and the rule.',
    },
    openclaw_config_refused: {
      meaning: 'OpenClaw does not accept the configuration. Nothing was changed.',
      remedy: '`detail` has what OpenClaw says. Compare the names and values with its documentation.',
    },
    openclaw_refused: {
      meaning: "OpenClaw calls the request invalid. `detail` has OpenClaw's own words.",
      remedy: 'Change what they name.',
    },
    isolation_unavailable: {
      meaning: 'This server cannot give the tools of an agent a room of their own.',
      remedy: 'Use `one_room`, or a server that runs agents in containers or jails.',
    },
    model_retired: {
      meaning: 'The vendor has shut the model down.',
      remedy: 'Name the model that `detail` names, or another one of `GET /v1/models`.',
    },
    model_of_other_provider: {
      meaning: 'The model is of another provider than the `model_provider` of the instance.',
      remedy: 'Name a model of that provider, or create an instance with the other provider.',
    },
    set_twice: {
      meaning: '`model` or `instructions` would be set beside the override in `openclaw_config` that means the same.',
      remedy: 'Leave one out. If it is stored, remove it in the same call.',
    },
    model_of_itself: {
      meaning: '`model` is `openclaw`, which stands for the model that this field sets.',
      remedy: 'Name a model of the provider, or send null for its default.',
    },
    if_exists_without_external_id: {
      meaning: '`if_exists` says what to do when an instance has the `external_id` already, and there is none.',
      remedy: 'Send an `external_id`, or leave `if_exists` out.',
    },
    resources_above_maximum: {
      meaning: 'A number in `resources` is greater than this server allows your organization.',
      remedy: '`detail` has the greatest number. `GET /v1/organization` shows all as `max_resources`.',
    },
    invalid_egress: {
      meaning: '`egress` has a host that is none, or hosts that its mode does not have, or too many.',
      remedy: '`detail` names the host and the rule. `docs/egress.md` has the forms.',
    },
    too_many_labels: {
      meaning: 'The change would leave the instance with more than 16 keys in `metadata`.',
      remedy: 'Remove some in the same call: `"metadata": {"key": null}`.',
    },
  }),
  ...codesOf('not_found', {
    instance_not_found: {
      meaning: 'The organization of the key has no instance with this id. `message` says when the id cannot be one.',
      remedy:
        'Take the id from `GET /v1/instances`. If it is empty in your request, look at the variable that holds it.',
    },
  }),
  ...codesOf('conflict', {
    instance_not_running: {
      meaning: 'The call needs a running instance. `detail` has its status.',
      remedy: 'Start it with `POST …/start`, or wait: `GET …/status?wait=running`.',
      repeat: 'After the instance runs.',
    },
    instance_not_startable: {
      meaning: 'The status of the instance does not allow a start.',
      remedy: '`detail` has the status, and what to do.',
    },
    instance_not_stoppable: {
      meaning: 'The status of the instance does not allow a stop.',
      remedy: '`detail` has the status, and what to do.',
    },
    instance_not_restartable: {
      meaning: 'The status of the instance does not allow a restart.',
      remedy: '`detail` has the status, and what to do.',
    },
    region_closed: {
      meaning: 'The operator has closed the region for new instances, or for starts.',
      remedy: '`GET /v1/regions` says which regions take new instances.',
      repeat: 'After the operator has opened the region again.',
    },
    instance_terminated: {
      meaning: 'The instance was deleted. That is for good.',
      remedy: 'Create another: `POST /v1/instances`.',
      repeat: 'No.',
    },
    release_refused: {
      meaning: 'This server does not start the OpenClaw of this release: it is too old.',
      remedy:
        '`detail` names its known vulnerabilities. `GET /v1/releases` says which releases start. The operator decides ' +
        'by `OPENCLAW_MIN_VERSION`.',
      repeat: 'After the operator has allowed the version.',
    },
    external_id_taken: {
      meaning: 'Another instance of your organization, which is not terminated, has this `external_id`.',
      remedy:
        '`detail` has its id. Use that instance, choose another `external_id`, or create with ' +
        '`"if_exists": "return"` to get the instance.',
      repeat: 'No.',
    },
    instance_busy: {
      meaning: 'Another call is changing the instance right now.',
      remedy: 'Send the request again a moment later.',
      repeat: 'Yes. Nothing has changed.',
    },
  }),
  ...codesOf('gateway_unreachable', {
    gateway_unreachable: {
      meaning: 'The gateway of the instance cannot be reached, or failed.',
      remedy: 'Read `GET …/status`. If the status stays `running` and the failure too, restart it: `POST …/restart`.',
    },
  }),
  ...codesOf('gateway_timeout', {
    gateway_timeout: {
      meaning: 'The gateway of the instance did not answer in time. The requested action may still happen.',
      remedy: 'Read the state of the resource to see whether it happened.',
    },
  }),
  ...codesOf('no_space', {
    disk_limit_reached: {
      meaning: 'The files of the instance, with what the call would write, need more than 95 % of its `disk_mb`.',
      remedy: 'Delete files of the instance, or raise `resources.disk_mb`. What was deleted counts within 30 seconds.',
    },
    host_disk_full: {
      meaning: 'The disk of the server has almost no room left, and the rest is for its database.',
      remedy: 'Nothing that you can do: the operator of this server must make room.',
      repeat: 'Yes, some minutes later.',
    },
    no_space: {
      meaning: 'The disk that the instance uses is full.',
      remedy: 'Delete files of the instance, or ask the operator of this server for room.',
    },
  }),
  ...codesOf('rate_limited', {
    too_many_followers: {
      meaning: 'Five requests follow the output of this instance already, or a hundred follow that of any.',
      remedy: 'Close one of them, or read the output without `follow=true`.',
    },
  }),
}
