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

set_address() { # addr::gateway:netmask:name:device:off, as the kernel's own ip= has it; without a device, of the only card
    IFS=:
    set -- $1
    unset IFS
    hostname "$5"
    ifconfig lo 127.0.0.1 up
    ifconfig "${6:-eth0}" "$1" netmask "$4" up && { [ -z "$3" ] || route add default gw "$3"; } &&
        echo "lab: address $1 gateway $3 name $5${6:+ on $6}"
}

set_ipv6() { # addr/prefix,gateway,device, as volt.ipv6= has it
    IFS=,
    set -- $1
    unset IFS
    device=${3:-eth0}
    ip link set "$device" up
    ip addr add "$1" dev "$device" && found "$device" && { [ -z "$2" ] || ip -6 route add default via "$2" dev "$device"; } &&
        echo "lab: ipv6 ${1%/*} on $device"
}

# Waits until a card's IPv6 addresses are known to be nobody else's: before that, nothing is sent under them.
found() {
    tries=0
    # Tentative is the bit 6 of the flags, of which there are eight.
    while grep -q " [4567cdef]. *$1\$" /proc/net/if_inet6; do
        tries=$((tries + 1))
        [ $tries -lt 300 ] || { echo "lab: ipv6 of $1 is tentative for ever"; return 1; }
        sleep 0.1
    done
}

# How many fragments this guest has been sent or has made, of either family.
fragments() {
    awk '/^Ip: [0-9]/ { n += $15 + $20 } /^Ip6(ReasmReqds|FragCreates) / { n += $2 } END { print n + 0 }' \
        /proc/net/snmp /proc/net/snmp6
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
    jumbo:*) # 8900 bytes, each time in one frame
        before=$(fragments)
        ping -c 3 -W 5 -s 8900 "${1#*:}" >/dev/null 2>&1 || { echo "lab: $1 failed: no answer"; return; }
        [ "$(fragments)" = "$before" ] || { echo "lab: $1 failed: it went in fragments"; return; } ;;
    silent:*) # from a card, to an address: nobody answers
        set -- "$1" ${1#*:}
        ! ping -c 2 -W 3 -I "$2" "$3" >/dev/null 2>&1 || { echo "lab: $1 failed: there is an answer"; return; } ;;
    serve:*) # this guest's name, to whoever connects
        nc -ll -p "${1#*:}" -e hostname 2>/nc.log &
        tries=0
        until grep -q " 0*:$(printf %04X "${1#*:}") 0*:0000 0A " /proc/net/tcp6; do
            tries=$((tries + 1))
            [ $tries -lt 50 ] || { echo "lab: $1 failed: nobody listens: $(cat /nc.log)"; return; }
            sleep 0.1
        done ;;
    hear:*) # at an address and port, that word, or nothing
        set -- "$1" ${1#*:}
        [ -n "$4" ] && patience=60 || patience=5
        heard=$(nc -w $patience "$2" "$3" </dev/null 2>/dev/null)
        [ "$heard" = "$4" ] || { echo "lab: $1 failed: it says '$heard'"; return; } ;;
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
    volt.ipv6=*) set_ipv6 "${word#volt.ipv6=}" ;;
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
