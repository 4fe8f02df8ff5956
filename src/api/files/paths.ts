import { AppError } from '#errors/app-error.ts'
import { texts } from '#errors/texts.ts'

/** OpenClaw treats an empty workspace as lost and refuses every turn for a day. This file prevents that. */
const keepFile = '.keep'
/** OpenClaw loads plugins from here into the gateway, which has more rights than the workspace. */
const pluginsParent = '.openclaw'
/** The most levels of a path that is written: each may be a new folder. */
export const maxLevels = 64

/** Whether a path, as `parsePath` returns it, is hidden from clients. */
export const isHidden = (path: string): boolean => path === keepFile || path.split('/')[0] === pluginsParent

/** Removes empty and `.` parts; `.` is the workspace. Throws invalid for a path that leads out of the workspace. */
export function parsePath(text: string): string {
  if (text.includes('\0')) throw new AppError('invalid_path', texts.pathNul)
  if (text.includes('\\')) throw new AppError('invalid_path', texts.pathBackslash)
  if (text.startsWith('/')) throw new AppError('invalid_path', texts.pathAbsolute)
  const parts = text.split('/').filter((part) => part !== '' && part !== '.')
  if (parts.includes('..')) throw new AppError('invalid_path', texts.pathUpwards)
  return parts.join('/') || '.'
}

/** The path of a file or directory that exists. Throws not_found for a hidden file. */
export function existingPath(text: string): string {
  const path = parsePath(text)
  if (isHidden(path)) throw new AppError('file_not_found', texts.noSuchFile)
  return path
}

/** The path of a file or directory to move or delete. Throws invalid for the workspace itself. */
export function movablePath(text: string): string {
  const path = existingPath(text)
  if (path === '.') throw new AppError('invalid_path', texts.wholeWorkspace)
  return path
}

/** The path of a file or directory to create. Throws invalid for a hidden file, and for too many levels. */
export function newPath(text: string, param = 'path'): string {
  const path = parsePath(text)
  if (path.split('/').length > maxLevels)
    throw new AppError('invalid_path', texts.pathTooDeep(param, maxLevels), { param })
  if (isHidden(path)) throw new AppError('invalid_path', texts.reservedPath)
  return path
}

/** The path of a file to write. Throws invalid for a directory. */
export function newFilePath(text: string): string {
  const path = newPath(text)
  if (path === '.' || text.endsWith('/')) throw new AppError('invalid_path', texts.pathIsFolder)
  return path
}
