#!/bin/sh
# udhcpc's script: print what the lease says, set the address.
[ "$1" = bound ] || exit 0
ip address flush dev "$interface"
ip address add "$ip/$mask" dev "$interface"
echo "ip=$ip router=$router dns=$dns file=$boot_file"
