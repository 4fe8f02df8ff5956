/** Of its processors: a sandbox that used more since the last look has computed nearly without a pause. */
const lasting = 0.6
/**
 * One with little weight may get less than it asks for: only with less use than this has it paused. A gateway at rest
 * uses a hundredth.
 */
const rest = 0.05

/** The share of its weight that a sandbox keeps while it computes nearly without a pause. */
export const lowShare = 0.1

/** Whether a sandbox computes nearly without a pause; `use` is the share of its processors that it used of late. */
export const isLasting = (use: number, hadLowWeight: boolean): boolean => use > (hadLowWeight ? rest : lasting)
