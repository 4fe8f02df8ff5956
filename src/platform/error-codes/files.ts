import { codesOf } from './kinds.ts'

/** Of the files in a workspace. */
export const fileCodes = {
  ...codesOf('invalid', {
    invalid_path: {
      meaning:
        'The path is absolute, leads out of the workspace, is too long, or has a character that it must not have.',
      remedy: 'Send a path relative to the workspace, its names separated with `/`: `notes/today.md`.',
    },
    symbolic_link: {
      meaning: 'The path leads to a symbolic link, or through one. No call follows symbolic links.',
      remedy: 'Name the file that it points to. `GET …/files` shows links as such.',
    },
    not_a_directory: {
      meaning: 'A part of the path is a file, and would have to be a directory.',
      remedy: 'List the directory above with `GET …/files` to see what is there.',
    },
    not_a_file: {
      meaning: 'The path names a pipe, a socket or a device.',
      remedy: 'Name a file or a directory.',
    },
    move_into_itself: {
      meaning: 'A directory was to be moved to a place below itself.',
      remedy: 'Choose a destination outside of it.',
    },
    permission_denied: {
      meaning: 'The permissions of the file, or of its directory, forbid the call.',
      remedy: 'Let the agent change them.',
    },
    unusable_path: {
      meaning: 'Chowder cannot use a path of its own in the sandbox, because the agent has put something else there.',
      remedy: '`detail` names the path and what is there. Let the agent remove it.',
    },
    path_is_directory: {
      meaning: 'The path names a directory, and the call needs a file.',
      remedy: 'Name a file. `GET …/files` lists a directory.',
    },
    path_is_workspace: {
      meaning: 'The workspace itself cannot be moved or deleted.',
      remedy: 'Name a file or a directory in it.',
    },
    reserved_path: {
      meaning: 'OpenClaw needs the file `.keep`, and loads plugins from the folder `.openclaw`.',
      remedy: 'Use another name.',
    },
    file_not_text: {
      meaning: 'The file is not UTF-8 text.',
      remedy: 'Download it: `GET …/files/download`.',
    },
    invalid_form: {
      meaning: 'The form of an upload lacks a field, has another, or is incomplete.',
      remedy: 'Send exactly `path` (text) and `file`, in this order, each once.',
    },
  }),
  ...codesOf('not_found', {
    file_not_found: {
      meaning: 'The workspace has no such file or directory.',
      remedy: 'List the directory with `GET …/files`.',
    },
  }),
  ...codesOf('conflict', {
    instance_has_no_files: {
      meaning: 'The instance has no files yet: its sandbox is still to be made.',
      remedy: 'Wait: `GET …/status?wait=running`.',
      repeat: 'After the instance runs.',
    },
    destination_exists: {
      meaning: 'Something has the name of the destination.',
      remedy: 'Send `"overwrite": true` to replace a file by a file, or choose another name.',
      repeat: 'No.',
    },
    directory_not_empty: {
      meaning: 'The directory is not empty, or a program has written into it while it was deleted.',
      remedy: 'Add `recursive=true` to delete it with its contents.',
      repeat: 'With `recursive=true`.',
    },
    file_locked: {
      meaning: 'The agent has locked the file.',
      remedy: 'Send the request again a moment later.',
      repeat: 'Yes. Nothing has changed.',
    },
    file_changed: {
      meaning: 'The file became shorter while it was read.',
      remedy: 'Read it again.',
      repeat: 'Yes.',
    },
  }),
  ...codesOf('too_large', {
    file_too_large: {
      meaning: 'The file is larger than this call reads or writes.',
      remedy: 'Use `…/files/upload` and `…/files/download`. `detail` names the limits.',
    },
  }),
  ...codesOf('gateway_timeout', {
    sandbox_timeout: {
      meaning: 'The sandbox did not answer in time. The requested action may still happen.',
      remedy: 'Read the file or the directory to see whether it happened.',
    },
  }),
}
