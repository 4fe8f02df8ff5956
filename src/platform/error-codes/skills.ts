import { codesOf } from './kinds.ts'

/** Of skills. */
export const skillCodes = {
  ...codesOf('invalid', {
    unknown_skill: {
      meaning: 'The registry has no such skill, or no such version of it.',
      remedy: 'Search for it: `GET …/skills/search`.',
    },
    ambiguous_skill: {
      meaning: 'More than one skill of the registry has this slug.',
      remedy: 'Send the slug with its owner. `detail` lists them.',
    },
    skill_refused: {
      meaning: 'The registry withholds the skill, or its security scan found it malicious.',
      remedy: 'Choose another skill. `detail` has the reason.',
    },
    skill_unverified: {
      meaning:
        'The security scan of the registry has not found the skill to be safe, or the registry does not list its files.',
      remedy: 'Read the skill, and send `"allow_unverified": true` to install it at your own risk.',
    },
    skill_not_installed: {
      meaning: 'OpenClaw could not install the skill, or its files are not the published ones. It was removed.',
      remedy: '`detail` has the reason. Choose another version, or another skill.',
    },
    skill_not_from_registry: {
      meaning: 'The skill was not installed from the registry, so it cannot be updated or uninstalled.',
      remedy: 'Disable it with `"enabled": false`, or change its files in the workspace.',
    },
    invalid_skill_settings: {
      meaning: 'The settings of the skill have a name that they must not have, or are too large or too deep.',
      remedy: '`detail` names the rule.',
    },
  }),
  ...codesOf('not_found', {
    skill_not_found: {
      meaning: 'The agent has no skill of this name.',
      remedy: 'Take the name from `GET …/skills`.',
    },
  }),
  ...codesOf('conflict', {
    skill_already_installed: {
      meaning: 'The skill is installed already.',
      remedy: 'Change its version: `POST …/skills/{skill_name}/update`.',
      repeat: 'No.',
    },
    skill_folder_taken: {
      meaning: 'Another skill uses the folder that this one needs.',
      remedy: 'Uninstall it, or move its folder away.',
      repeat: 'After the folder is free.',
    },
  }),
  ...codesOf('gateway_unreachable', {
    skill_registry_unreachable: {
      meaning: 'The skill registry does not answer, or its answer cannot be read.',
      remedy: 'Wait, and try again.',
      repeat: 'Yes.',
    },
  }),
  ...codesOf('unavailable', {
    skill_registry_busy: {
      meaning: 'The skill registry asks to wait before the next request.',
      remedy: 'Wait as long as `Retry-After` says.',
    },
  }),
}
