#!/bin/sh
# Init of the test guest: drives Linux' own NVMe/TCP initiator and reports on the serial port, a line a fact.
export PATH=/bin:/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for word in $(cat /proc/cmdline); do case $word in t_*=*) export "$word" ;; esac; done
for module in virtio_pci virtio_net nvme_tcp; do modprobe $module; done
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0

say() { echo "GUEST $*"; }
trap 'say failed; poweroff -f' EXIT

connect() { # nqn hostnqn options: controller's name, or nothing
  ( exec 3<> /dev/nvme-fabrics
    echo "nqn=$1,transport=tcp,traddr=10.0.2.2,trsvcid=$t_port,hostnqn=$2,hostid=aaaaaaaa-2222-4333-8444-555555555555$3" >&3
  ) 2> /dev/null
}
wait_for() { # a path
  n=0
  until [ -e "$1" ]; do n=$((n + 1)); [ $n -gt 200 ] && { say "no $1"; exit 1; }; usleep 100000; done
}
sum() { # MiB from the start of the disk, past the page cache
  dd if=/dev/nvme0n1 bs=256k count=$(($1 * 4)) iflag=direct 2> /dev/null | md5sum | cut -d' ' -f1
}
identity() {
  for fact in wwid uuid nguid eui size; do echo -n "$(cat /sys/block/nvme0n1/$fact)|"; done
}
gone() { # ends the controller
  echo 1 > /sys/class/nvme/nvme0/delete_controller
  while [ -e /sys/class/nvme/nvme0 ]; do usleep 50000; done
}

connect nqn.2014-08.org.nvmexpress.discovery $t_host || say "no discovery"
wait_for /dev/nvme0
say $(discover /dev/nvme0)
gone

connect $t_nqn $t_host.wrong && say "a stranger is let in" || say "stranger refused"
connect $t_nqn.wrong $t_host && say "an unknown subsystem is there" || say "unknown refused"

connect $t_nqn $t_host ",nr_io_queues=2,queue_size=64,hdr_digest,data_digest,ctrl_loss_tmo=-1,reconnect_delay=1,keep_alive_tmo=2" || say "no connection"
wait_for /dev/nvme0n1
say "queues $(cat /sys/class/nvme/nvme0/queue_count)"
say "identity $(identity)"
head -c $((t_mib << 20)) /dev/urandom > /tmp/pattern
say "pattern $(md5sum /tmp/pattern | cut -d' ' -f1)"
say writing
dd if=/tmp/pattern of=/dev/nvme0n1 bs=64k count=$((t_mib * 8)) oflag=direct conv=fsync 2> /dev/null || say "first half failed"
say half
read -r _ # the target is killed and started again by now, or at any moment
dd if=/tmp/pattern of=/dev/nvme0n1 bs=64k skip=$((t_mib * 8)) seek=$((t_mib * 8)) oflag=direct conv=fsync 2> /dev/null || say "second half failed"
say "digested $(sum $t_mib)"
say "again $(identity)"
gone

connect $t_nqn $t_host ",nr_io_queues=1,ctrl_loss_tmo=-1,reconnect_delay=1"
wait_for /dev/nvme0n1
say "plain $(sum $t_mib)"
blkdiscard -o 1048576 -l 1048576 /dev/nvme0n1 || say "no discard"
say "discarded $(dd if=/dev/nvme0n1 bs=1M skip=1 count=1 iflag=direct 2> /dev/null | md5sum | cut -d' ' -f1)"
say attach
wait_for /sys/block/nvme0n2/uuid
say "attached $(cat /sys/block/nvme0n2/uuid)"
gone
trap - EXIT
say done
poweroff -f
