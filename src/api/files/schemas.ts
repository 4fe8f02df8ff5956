import { type Static, Type } from '@sinclair/typebox'
import { toSeconds } from '#platform/timestamps.ts'
import { DateTime } from '#platform/typebox.ts'
import type { FileStat } from '#sandbox/driver.ts'
import { maxLevels } from './paths.ts'

export const maxPathCharacters = 4096

const FilePath = Type.String({
  minLength: 1,
  maxLength: maxPathCharacters,
  description:
    'Relative to the workspace, with `/` between names; without `..`, backslashes and a `/` at the beginning. A path ' +
    `that is written has at most ${maxLevels} levels.`,
})

export const PathQuery = Type.Object({ path: FilePath })

export const DirectoryQuery = Type.Object({ path: Type.Optional({ ...FilePath, default: '.' }) })

export const DeleteQuery = Type.Object({
  path: FilePath,
  recursive: Type.Optional(
    Type.Boolean({ default: false, description: 'Whether a directory is deleted with its contents.' }),
  ),
})

const exampleEntry = {
  name: 'web-search',
  path: 'skills/web-search',
  is_dir: true,
  size: 0,
  mod_time: '2026-01-15T10:30:00Z',
  permissions: 'drwx------',
}

export const FileEntry = Type.Object(
  {
    name: Type.String({
      description: 'The last part of the path. U+FFFD is in place of what is not UTF-8; no call finds such a file.',
    }),
    path: Type.String({ description: 'Relative to the workspace.' }),
    is_dir: Type.Boolean({ description: 'Whether it is a directory.' }),
    size: Type.Integer({ description: 'In bytes; 0 for a directory.' }),
    mod_time: DateTime('The time of the last change, in UTC.'),
    permissions: Type.String({ description: 'In the format of `ls -l`; for a symbolic link they begin with `l`.' }),
  },
  {
    $id: 'FileEntry',
    examples: [exampleEntry],
  },
)

export const maxEntries = 10_000

export const FileList = Type.Object(
  {
    path: Type.String({ description: 'The listed directory, relative to the workspace.' }),
    entries: Type.Array(FileEntry, { description: 'Sorted by name, with hidden files, not recursive.' }),
    truncated: Type.Boolean({
      description: `Whether the directory has more than ${maxEntries} entries, of which the answer holds only some.`,
    }),
  },
  { $id: 'FileList', examples: [{ path: 'skills', entries: [exampleEntry], truncated: false }] },
)

/** The largest `content`, as UTF-8. */
export const maxContentBytes = 1024 * 1024

/** The schema has no maximum length: a text that is too large is a 413, not a 422. */
export const FileContent = Type.Object(
  { path: FilePath, content: Type.String({ description: 'Text, up to 1 MiB as UTF-8.' }) },
  {
    $id: 'FileContent',
    additionalProperties: false,
    examples: [{ path: 'config/custom.json', content: '{\n  "key": "value"\n}' }],
  },
)

/** Documents the form only: the handler reads it part by part. */
export const UploadFile = Type.Object({
  path: FilePath,
  file: Type.Unsafe<unknown>({ type: 'string', format: 'binary', description: 'The bytes of the file.' }),
})

export const MoveFile = Type.Object(
  {
    source: FilePath,
    destination: FilePath,
    overwrite: Type.Optional(Type.Boolean({ default: false, description: 'Whether a file may replace another file.' })),
  },
  {
    additionalProperties: false,
    examples: [{ source: 'config/old-name.json', destination: 'config/new-name.json' }],
  },
)

export const MakeDirectory = Type.Object(
  { path: FilePath },
  { additionalProperties: false, examples: [{ path: 'reports/2026' }] },
)

const kindLetters: Record<FileStat['kind'], string> = { file: '-', directory: 'd', link: 'l', other: '?' }

const lsPermissions = ({ kind, mode }: FileStat): string =>
  kindLetters[kind] + [...'rwxrwxrwx'].map((letter, index) => (mode & (0o400 >> index) ? letter : '-')).join('')

export const toEntry = (path: string, stat: FileStat): Static<typeof FileEntry> => ({
  name: path.slice(path.lastIndexOf('/') + 1),
  path,
  is_dir: stat.kind === 'directory',
  size: stat.kind === 'directory' ? 0 : stat.size,
  mod_time: toSeconds(stat.modifiedAt),
  permissions: lsPermissions(stat),
})
