#!/bin/sh
# Init of the test guest for authentication: connects as each line of its input says, and reports what came of it.
export PATH=/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
stty -echo
for word in $(cat /proc/cmdline); do case $word in t_*=*) export "$word" ;; esac; done
for module in virtio_pci virtio_net nvme_tcp; do modprobe $module; done
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0

say() { echo "GUEST $*"; }
trap 'say failed; poweroff -f' EXIT

connect() { # options
  ( exec 3<> /dev/nvme-fabrics
    echo "nqn=$t_nqn,transport=tcp,traddr=10.0.2.2,trsvcid=$t_port,hostnqn=$t_host,hostid=aaaaaaaa-2222-4333-8444-555555555555,nr_io_queues=2$1" >&3
  ) 2> /dev/null
}
disk() {
  n=0
  until [ -e /dev/nvme0n1 ]; do n=$((n + 1)); [ $n -gt 200 ] && { say "no disk"; exit 1; }; usleep 100000; done
  dd if=/dev/nvme0n1 bs=256k iflag=direct 2> /dev/null | md5sum | cut -d' ' -f1
}
proof() { dmesg -c | sed -n 's/.*qid 0: authenticated.*\(hmac([a-z0-9]*)\).* dhgroup \([a-z0-9]*\).*/\1 \2/p'; }
gone() {
  echo 1 > /sys/class/nvme/nvme0/delete_controller
  while [ -e /sys/class/nvme/nvme0 ]; do usleep 50000; done
}

say "kernel $(uname -r)"
while read -r what options; do
  case $what in
  try)
    dmesg -c > /dev/null
    if connect "$options"; then say "in $(disk) $(proof)"; gone; else say "refused"; fi
    ;;
  stay) if connect "$options"; then say "in $(disk)"; else say "refused"; fi ;;
  read) say "read $(disk)" ;;
  prove)
    dmesg -c > /dev/null
    echo "$options" > /sys/class/nvme/nvme0/dhchap_secret
    n=0
    until dmesg | grep -q 'qid 0: authenticated'; do n=$((n + 1)); [ $n -gt 100 ] && break; usleep 100000; done
    say "proved $(proof) $(disk)"
    ;;
  end) break ;;
  esac
done
trap - EXIT
say done
poweroff -f
