#!/bin/sh
# disk-use.sh <folder>: prints how many bytes of the disk a folder takes. Each file, also an empty one, counts at least 4 KiB,
# since a file system has room for so many files only. Prints after 7 s what it has found by then, which is the least that
# it can be. A file with several links counts a part at each.
timeout -s KILL 7 find "$1" -xdev '(' -type d -printf '%b 1\n' -o -printf '%b %n\n' ')' 2>/dev/null | awk '
  { bytes += $1 / $2 * 512; files += 1 / $2 }
  END {
    if (bytes < files * 4096) bytes = files * 4096
    printf "%.0f\n", bytes
  }'
