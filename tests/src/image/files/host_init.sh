#!/bin/sh
# First process of a host under test: mounts what memdex needs, loads KVM, lets the checks run, and powers off.
# The console takes everything; the report of the checks goes to the second serial port.
PATH=/bin
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mkdir -p /dev/shm /dev/pts /tmp /var/tmp
mount -t tmpfs -o mode=1777 none /dev/shm
mount -t devpts none /dev/pts
mount -t tracefs none /sys/kernel/tracing
mount -t debugfs none /sys/kernel/debug
mount -t bpf none /sys/fs/bpf
ip link set lo up

case " $(cat /proc/cmdline) " in
    *" memdex.without_kvm "*) echo "KVM's modules are not loaded, as asked" ;;
    *) for module in /modules/*.ko; do insmod "$module"; done ;;
esac

cd /tmp
# an emulated processor takes its time
export MEMDEX_PATIENCE=5
export MEMDEX_BIN_DIR=/programs RUST_BACKTRACE=0 RUST_LOG=info,indexer=debug,memdexd::ebpf=debug
/programs/kernel-check --report /dev/ttyS1 --tests /tests
echo "the checks ended with $?"
poweroff -f
