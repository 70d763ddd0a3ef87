#!/bin/sh
# PID 1 of the lab host: makes the initramfs look like an ordinary machine, then runs the driver with the
# scenario named on the kernel command line. Results leave over the second serial port.
export PATH=/bin
if [ "$1" != second-stage ]; then
    mkdir -p /proc /sys /dev /tmp /run /var/lib /root
    mount -t proc proc /proc
    # An ordinary machine's root is a mount that pivot_root takes; an initramfs is not.
    mount -o bind / /root
    umount /proc
    cd /root || exit 1
    mount -o move . /
    exec chroot . /bin/sh /init second-stage
fi
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t tmpfs -o mode=0755 run /run
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tracefs trace /sys/kernel/tracing
for module in $(cat /modules); do
    insmod "/lib/modules/$module" || echo "lab: module $module failed"
done
ip link set lo up
hostname lab
ulimit -n 65536
read -r command_line </proc/cmdline
scenario=${command_line##*lab.scenario=}
stty -F /dev/ttyS1 raw -echo
/bin/lab-driver "${scenario%% *}" 3>/dev/ttyS1
echo "lab: driver ended with $?"
sync
poweroff -f
