#!/bin/sh
# The first process of the lab host that Debian's systemd runs: hands over to it, with a root that it can take services off.
mkdir -p /proc /root
mount -t proc proc /proc
# An ordinary machine's root is a mount that pivot_root takes; an initramfs is not.
mount -o bind / /root
umount /proc
cd /root || exit 1
mount -o move . /
chmod 1777 tmp var/tmp
exec chroot . /lib/systemd/systemd
