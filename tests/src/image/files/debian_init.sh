#!/bin/sh
# The Debian guest's initramfs: loads what the disk needs, mounts it, hands over to systemd.
PATH=/bin
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
for module in /modules/*.ko; do insmod "$module"; done
tries=0
while [ ! -b /dev/vda ] && [ $tries -lt 100 ]; do usleep 100000; tries=$((tries + 1)); done
if ! mount -t ext4 /dev/vda /root; then
    echo "MEMDEX-FAILED: the root disk /dev/vda can't be mounted"
    poweroff -f
fi
mount --move /dev /root/dev
umount /sys /proc
exec switch_root /root /sbin/init
