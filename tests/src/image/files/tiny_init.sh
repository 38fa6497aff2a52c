#!/bin/sh
# The tiny guest's first process: fills a tmpfs, says so on the serial console, then writes at the rate it was told. With
# `memdex.disk` it reads and writes its disk beside that.
# Content of even files is the same in every guest, content of odd files depends on the seed and on chance.
PATH=/bin
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
for module in /modules/*.ko; do insmod "$module"; done

# What is read comes into the page cache by way of the device, each time anew; what is written leaves from there.
disk() {
    while [ ! -b /dev/vda ]; do sleep 1; done
    part=0
    while :; do
        dd if=/dev/urandom of=/dev/vda bs=64k count=8 seek=$((part % 100 * 8)) conv=notrunc 2> /dev/null
        sync
        echo 1 > /proc/sys/vm/drop_caches
        dd if=/dev/vda of=/dev/null bs=64k count=16 skip=$((part * 7 % 100 * 8)) 2> /dev/null
        part=$((part + 1))
        usleep 300000
    done
}

rate=10 files=64 kib=64 seed=1
for word in $(cat /proc/cmdline); do
    case $word in
        memdex.rate=*) rate=${word#*=} ;;
        memdex.files=*) files=${word#*=} ;;
        memdex.kib=*) kib=${word#*=} ;;
        memdex.seed=*) seed=${word#*=} ;;
        # reads its own settings
        memdex.check=*) memdex-check & ;;
        memdex.disk) disk & ;;
    esac
done
mount -t tmpfs -o size=80% none /work

# With a disk: reads all of it, over and over, and looks whether it always reads the same.
if [ -b /dev/vda ]; then
    (
        first=
        while :; do
            sum=$(md5sum < /dev/vda)
            [ -z "$first" ] && first=$sum
            [ "$sum" = "$first" ] || echo "MEMDEX-CHECK BAD the disk reads as $sum, not $first"
            echo "MEMDEX-DISK read"
            echo 3 > /proc/sys/vm/drop_caches
        done
    ) &
fi

# write FILE-NUMBER ROUND: the whole file anew
write() {
    if [ $(($1 % 2)) -eq 0 ]; then
        yes "page content that every guest has, file $1 round $2" | head -c $((kib * 1024)) > "/work/$1"
    else
        { echo "seed $seed file $1 round $2"; head -c $((kib * 1024)) /dev/urandom; } > "/work/$1"
    fi
}

file=0
while [ $file -lt "$files" ]; do write $file 0; file=$((file + 1)); done
echo MEMDEX-READY

if [ "$rate" -eq 0 ]; then
    while :; do sleep 3600; done
fi
pause=$((1000000 / rate))
count=0
while :; do
    usleep $pause
    file=$(((count * 7 + seed) % files))
    case $((count % 8)) in
        3) rm -f "/work/$file" ;;
        5) write $file $count ;;
        # some bytes of one page, the rest of the file as it was
        *) echo "rewrite $count of $seed" | dd of="/work/$file" bs=4096 seek=$((count % (kib / 4 + 1))) conv=notrunc 2> /dev/null ;;
    esac
    count=$((count + 1))
    [ $((count % 100)) -eq 0 ] && echo "MEMDEX-WRITES $count"
done
