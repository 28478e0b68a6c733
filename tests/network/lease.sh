#!/bin/sh
# What busybox's udhcpc runs: applies a lease, and prints it.
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ip addr replace "$ip/$mask" dev "$interface"
[ -z "$mtu" ] || ip link set "$interface" mtu "$mtu"
set -- $staticroutes
while [ $# -ge 2 ]; do ip route replace "$1" dev "$interface"; shift 2; done
printf 'ip=%s\nmask=%s\nmtu=%s\nrouter=%s\nhostname=%s\nserver=%s\nlease=%s\n' \
    "$ip" "$mask" "$mtu" "$router" "$hostname" "$serverid" "$lease"
