/** Why a call is not carried out, in words for the caller, with the HTTP status of the answer. */
export class Refusal extends Error {
  override name = 'Refusal'
  readonly status: number
  constructor(status: number, message: string) {
    super(message)
    this.status = status
  }
}
