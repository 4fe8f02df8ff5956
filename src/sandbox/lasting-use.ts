/** A sandbox that used more of its processors than this since the last look has computed nearly without a pause. */
export const lastingUse = 0.6
/** The share of its weight that it keeps then. */
export const lowShare = 0.1
/** So many threads at once that compute, or wait for a processor, are several. */
export const severalThreads = 2
