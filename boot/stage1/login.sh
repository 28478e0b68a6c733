# What the host proves itself with to its disk. Sourced by init, and by its tests.

# login URL: prints it as options of Linux' initiator. The agent tells it to a port below 1024, which nobody but root
# may use in the tenant's system; wget takes what it is given, so the range of those given is moved there meanwhile.
login() {
	net=/proc/sys/net/ipv4
	start=$(cat $net/ip_unprivileged_port_start)
	range=$(cat $net/ip_local_port_range)
	echo 600 >$net/ip_unprivileged_port_start
	echo 600 1023 >$net/ip_local_port_range
	timeout 5 wget -q -O - "$1"
	status=$?
	echo "$range" >$net/ip_local_port_range
	echo "$start" >$net/ip_unprivileged_port_start
	return $status
}
