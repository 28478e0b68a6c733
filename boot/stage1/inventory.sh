# What this machine is made of, for the agent's inventory; part of init, and tried out on other machines' sysfs.

# inventory SYS PROC: JSON on stdout
inventory() {
	kind=bios
	[ -d "$1/firmware/efi" ] && kind=efi
	{
		ls -l "$1/bus/pci/devices" "$1/class/net" "$1/class/block" 2>/dev/null
		cat "$2/cpuinfo"
	} | awk -v sys="$1" -v kind=$kind -f "$HERE/inventory.awk"
}

# report URL: tell the agent; it takes one report a run, and nobody waits for it
report() {
	inventory /sys /proc >/run/inventory.json
	timeout 5 wget -q -O /dev/null --header "Content-Type: application/json" --post-file /run/inventory.json "$1"
}
