/** Reasons why an installer fails, recognized in its output. The first match counts. */
const reasons: readonly [RegExp, string][] = [
  [/ENOSPC|EDQUOT|no space left|disk quota/i, 'the disk is full'],
  [/EINTEGRITY/, 'a package is not the one that was locked'],
  [/CERT_|SELF_SIGNED|UNABLE_TO_(GET|VERIFY)/, 'the certificate of the package registry is not trusted'],
  [/\bE(401|403|404|5\d\d)\b/, 'the package registry does not give a package'],
  [
    /ENOTFOUND|EAI_AGAIN|ECONN(REFUSED|RESET)|ETIMEDOUT|EHOSTUNREACH|ENETUNREACH|ERR_SOCKET_TIMEOUT/,
    'the package registry cannot be reached',
  ],
  [/spawn npm ENOENT/, 'there is no npm on this host'],
]

/**
 * Software could not be installed on this host. The message names the kind of reason and is safe for everybody.
 * `output` is the end of the installer's output, for operators.
 */
export class InstallError extends Error {
  override name = 'InstallError'
  readonly output: string
  /** Whether the message is sufficient for the operator. */
  readonly isExplained: boolean

  /** `failure` is a sentence without an end, such as `OpenClaw could not be installed`. */
  constructor(failure: string, output: string, reason?: string) {
    const known = reason ?? reasons.find(([pattern]) => pattern.test(output))?.[1]
    super(known === undefined ? `${failure}.` : `${failure}: ${known}.`)
    this.output = output
    this.isExplained = known !== undefined
  }
}
