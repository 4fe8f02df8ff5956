/** How many pieces the stub gateway's streamed answers come in. */
export const streamedPieces = 200
