#!/bin/sh
# disk-use.sh <folder> [<pid>…]: prints how many bytes of the disk a folder takes, with the deleted files of that disk
# which these processes have open or mapped. Each file, also an empty one, counts at least 4 KiB, since a file system has
# room for so many files only. After 7 s in the folder, and 2 s at the processes, it prints what it has found by then,
# which is the least that they take. A file with several links counts a part at each.
folder=$1
shift
opened=
mapped=
for pid; do
  # A thread may have open files of its own.
  opened="$opened /proc/$pid/task/*/fd"
  mapped="$mapped /proc/$pid/map_files"
done
{
  timeout -s KILL 7 find "$folder" -xdev '(' -type d -printf '%b 1\n' -o -printf '%b %n\n' ')'
  echo # the last line may be cut
  # Root's are programs of the host that were replaced.
  [ $# -eq 0 ] ||
    timeout -s KILL 2 find -L $opened $mapped -maxdepth 1 -type f -links 0 ! -user 0 -printf '%b 1 %D %i\n'
} 2>/dev/null | perl -e '
  my ($bytes, $files, %seen) = (0, 0);
  my $disk = (stat shift)[0];
  while (<>) {
    my ($blocks, $links, $on, $inode) = /^(\d+) (\d+)(?: (\d+) (\d+))?\n/ or next;
    next if defined $on and ($on != $disk or $seen{$inode}++);
    $bytes += 512 * $blocks / $links;
    $files += 1 / $links;
  }
  printf "%.0f\n", $bytes < 4096 * $files ? 4096 * $files : $bytes' "$folder"
