# disk-quota.pl <uid> <megabytes> <files> <folder>: limits what the files of a user may take of the file system that holds
# a folder, and how many they may be. 0 is no limit. Fails where the file system keeps no quotas of users. The call is
# quotactl_fd(2), whose number is the same on every processor, with a struct if_dqblk.
use strict;
use warnings;
use Fcntl qw(O_RDONLY O_DIRECTORY);

my ($uid, $megabytes, $files, $folder) = @ARGV;
my ($quotactl_fd, $set_quota_of_user, $limits_of_both, $blocks_of_megabyte) = (443, 0x80000800, 5, 1024);
sysopen my $opened, $folder, O_RDONLY | O_DIRECTORY or die "$folder: $!\n";
my $limits = pack 'Q8 L x4', $megabytes * $blocks_of_megabyte, 0, 0, $files, 0, 0, 0, 0, $limits_of_both;
syscall($quotactl_fd, fileno $opened, $set_quota_of_user, $uid + 0, $limits) == 0 or die "quotactl_fd: $!\n";
