#!/bin/sh
# Keeps a Debian guest gently busy: redis keys and a file on disk are rewritten, so pages of processes, of the page cache
# and of the kernel change all the time. The rate is told on the kernel command line.
rate=10 files=64 seed=1
for word in $(cat /proc/cmdline); do
    case $word in
        memdex.rate=*) rate=${word#*=} ;;
        memdex.files=*) files=${word#*=} ;;
        memdex.seed=*) seed=${word#*=} ;;
    esac
done
[ "$rate" -gt 0 ] || exec sleep infinity
pause=$(awk "BEGIN { print 1 / $rate }")

# One redis-cli for the whole time: starting one for each write would be all that an emulated guest does.
count=0
while :; do
    key=$(((count * 7 + seed) % files))
    echo "SET key:$key \"seed $seed write $count $(head -c 300 /dev/urandom | base64 -w 0)\""
    if [ $((count % 10)) -eq 0 ]; then
        head -c 16384 /dev/urandom > "/var/tmp/file-$key"
    fi
    count=$((count + 1))
    sleep "$pause"
done | redis-cli > /dev/null
