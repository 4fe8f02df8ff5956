import type { Check } from './finding.ts'

const gigabytes = (bytes: number) => (bytes / 1024 ** 3).toFixed(1)

/** The disk of the data folder has room for more than the control plane. */
export const hostHasRoom: Check = async function* ({ hostDisk }) {
  const disk = await hostDisk?.read()
  if (!disk?.isLow) return
  const files = disk.freeFiles === null ? '' : ` and room for ${disk.freeFiles} files`
  yield {
    area: 'disk',
    what:
      `The disk of the data folder has ${gigabytes(disk.freeBytes)} GB${files} left, and the last ` +
      `${gigabytes(disk.floorBytes)} GB, with 256 files for each MB, are for the control plane: nothing is created, ` +
      'started or uploaded.',
    whatToDo:
      'Make room. `du` in the folder sandboxes, or `docker system df -v`, shows which agents have the most files.',
  }
}
