import { AppError } from '#platform/errors.ts'
import { texts } from '#platform/texts.ts'

/** Keeps OpenClaw from taking an empty workspace for a lost one, after which it refuses every turn for a day. */
const keepFile = '.keep'

/** Whether a path, as `pathOf` returns it, is kept from clients. */
export const isHidden = (path: string): boolean => path === keepFile

/** A client's path without empty and `.` parts; `.` is the workspace. Throws invalid for one that leads out of it. */
export function pathOf(text: string): string {
  if (text.includes('\0')) throw new AppError('invalid', texts.pathNul)
  if (text.includes('\\')) throw new AppError('invalid', texts.pathBackslash)
  if (text.startsWith('/')) throw new AppError('invalid', texts.pathAbsolute)
  const parts = text.split('/').filter((part) => part !== '' && part !== '.')
  if (parts.includes('..')) throw new AppError('invalid', texts.pathUpwards)
  return parts.join('/') || '.'
}

/** The path of something that is there. Throws not_found for what clients do not see. */
export function existingPath(text: string): string {
  const path = pathOf(text)
  if (isHidden(path)) throw new AppError('not_found', texts.noSuchFile)
  return path
}

/** Such a path of something that may be moved or removed: not the workspace itself. */
export function movablePath(text: string): string {
  const path = existingPath(text)
  if (path === '.') throw new AppError('invalid', texts.wholeWorkspace)
  return path
}

/** The path of something that is to be made. */
export function newPath(text: string): string {
  const path = pathOf(text)
  if (isHidden(path)) throw new AppError('invalid', texts.reservedPath)
  return path
}

/** The path of a file that is to be written. */
export function newFilePath(text: string): string {
  const path = newPath(text)
  if (path === '.' || text.endsWith('/')) throw new AppError('invalid', texts.pathIsFolder)
  return path
}
