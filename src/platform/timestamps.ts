/** The documented form of organization and instance timestamps: `2026-02-14T16:00:00.000000+00:00`. */
export const toMicroseconds = (date: Date): string => date.toISOString().replace('Z', '000+00:00')
