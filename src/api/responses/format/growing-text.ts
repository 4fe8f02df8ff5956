const maxPieces = 1000

/**
 * A text that grows by pieces, which may be short and many: an agent decides. A string to which each is added would keep
 * an object of 32 bytes for every piece.
 */
export class GrowingText {
  readonly #blocks: string[] = []
  #pieces: string[] = []

  constructor(text = '') {
    this.add(text)
  }

  add(piece: string): void {
    this.#pieces.push(piece)
    if (this.#pieces.length < maxPieces) return
    this.#blocks.push(this.#pieces.join(''))
    this.#pieces = []
  }

  toString(): string {
    return [...this.#blocks, ...this.#pieces].join('')
  }
}
