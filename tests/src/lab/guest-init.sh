#!/bin/sh
# PID 1 of the lab's guests. Says "lab: init" first of all, sets up what it finds, says "lab: ready", then does
# what it is told: the words of `lab.do=` on the kernel command line, or /commands, then whatever comes over
# the console, one command a line. A command is `name:argument`; its answer is `lab: COMMAND ok` or
# `lab: COMMAND failed: WHY`.
echo "lab: init"
export PATH=/bin
mkdir -p /proc /sys /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
# From here on the console is for answers; the kernel's own lines would land in the middle of them.
dmesg -n 1
# A terminal would echo commands back into the answers.
stty -echo -icrnl 2>/dev/null

for module in $(cat /modules); do
    insmod "/lib/modules/$module" || echo "lab: module $module failed"
done

# The console's reader may be slow to answer a power button; whoever presses it wants an orderly end.
for event in /dev/input/event*; do
    [ -c "$event" ] && (head -c 1 "$event" >/dev/null && sync && poweroff -f) &
done

set_address() { # addr::gateway:netmask:name::off, as the kernel's own ip= has it
    IFS=:
    set -- $1
    unset IFS
    hostname "$5"
    ifconfig lo 127.0.0.1 up
    ifconfig eth0 "$1" netmask "$4" up && route add default gw "$3" &&
        echo "lab: address $1 gateway $3 name $5"
}

pattern() { yes "$1" | head -c 1048576; }

obey() {
    case $1 in
    ping:*)
        tries=0
        until ping -c 1 -W 2 "${1#*:}" >/dev/null 2>&1; do
            tries=$((tries + 1))
            [ $tries -lt 15 ] || { echo "lab: $1 failed: no answer"; return; }
        done ;;
    write:*) # 1 MiB at 64 KiB, forced to the disk
        pattern "${1#*:}" | dd of=/dev/vda bs=65536 seek=1 conv=fsync,notrunc iflag=fullblock 2>/dev/null ||
            { echo "lab: $1 failed: dd says $?"; return; } ;;
    read:*)
        echo 3 >/proc/sys/vm/drop_caches
        want=$(pattern "${1#*:}" | md5sum)
        have=$(dd if=/dev/vda bs=65536 skip=1 count=16 2>/dev/null | md5sum)
        [ "$want" = "$have" ] || { echo "lab: $1 failed: the disk holds something else"; return; } ;;
    cpus:*)
        have=$(grep -c ^processor /proc/cpuinfo)
        [ "$have" = "${1#*:}" ] || { echo "lab: $1 failed: there are $have"; return; } ;;
    memory) # all but what the kernel and this shell take
        have=$(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo)
        mkdir -p /fill && mount -t tmpfs -o size=100% fill /fill &&
            dd if=/dev/zero of=/fill/all bs=1M count=$((have / 1024 - 24)) 2>/dev/null ||
            { echo "lab: $1 failed: of $have KiB"; return; }
        umount /fill ;;
    fill) # all of the disk, so that all of its image is there
        size=$(($(cat /sys/block/vda/size) / 2048))
        dd if=/dev/zero of=/dev/vda bs=1M count=$size conv=fsync,notrunc 2>/dev/null ||
            { echo "lab: $1 failed: of $size MiB"; return; } ;;
    idle) while :; do sleep 3600; done ;;
    reboot) echo "lab: reboot ok"; sync; reboot -f ;;
    poweroff) echo "lab: poweroff ok"; sync; poweroff -f ;;
    *) echo "lab: $1 failed: no such command"; return ;;
    esac
    echo "lab: $1 ok"
}

commands=
for word in $(cat /proc/cmdline); do
    case $word in
    ip=*) set_address "${word#ip=}" ;;
    lab.do=*) commands=$(echo "${word#lab.do=}" | tr , ' ') ;;
    esac
done
[ -z "$commands" ] && [ -f /commands ] && commands=$(cat /commands)

echo "lab: cmdline $(cat /proc/cmdline)"
echo "lab: ready"
for command in $commands; do
    obey "$command"
done
while read -r command; do
    command=$(echo "$command" | tr -d '\r')
    [ -n "$command" ] && obey "$command"
done
# The console has gone: nobody can ask for anything any more.
poweroff -f
