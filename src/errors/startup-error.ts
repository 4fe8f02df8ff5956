/** Chowder cannot start. The message is for operators, and is printed without a stack. */
export class StartupError extends Error {
  override name = 'StartupError'
}
