# What this machine is made of, as the JSON that the agent keeps of its host (nicagent/inventory.py).
# In: ls -l of /sys/bus/pci/devices, /sys/class/net and /sys/class/block, and the text of /proc/cpuinfo.
# sys: where sysfs is; kind: efi or bios. Reads sysfs itself: a process a file would cost seconds.

function first_line(path,    line) {
	if ((getline line <path) < 1) line = ""
	close(path)
	gsub(/[^ -~]/, "", line)
	sub(/^ +/, "", line)
	sub(/ +$/, "", line)
	return line
}

# Neither quotes nor backslashes: what is shown to people can do without.
function plain(text) {
	gsub(/"/, "'", text)
	gsub(/\\/, "/", text)
	return substr(text, 1, 128)
}

# text("key", value): a member of the object, unless the value is empty or a maker's way to say so
function text(key, value) {
	if (value == "" || value ~ /^(None|N\/A|Default string|Not Specified|Not Available|To [Bb]e [Ff]illed.*|0+)$/) return
	member(key, "\"" plain(value) "\"")
}

function number(key, value) { if (value ~ /^[0-9]+$/) member(key, value + 0) }

function member(key, json) {
	members = members (members == "" ? "" : ",") "\"" key "\":" json
}

function object(    json) {
	json = "{" members "}"
	members = ""
	return json
}

function dmi(key, file) { text(key, first_line(sys "/class/dmi/id/" file)) }

# The last PCI address of a path in sysfs: the function that all behind it belongs to.
function function_of(path,    parts, i) {
	for (i = split(path, parts, "/"); i > 0; i--) if (parts[i] ~ PCI) return parts[i]
	return ""
}

function add(list, json) { lists[list] = lists[list] (lists[list] == "" ? "" : ",") json }

function pci(path, address,    above) {
	text("address", address)
	text("vendor_id", first_line(path "/vendor"))
	text("product_id", first_line(path "/device"))
	text("class_code", first_line(path "/class"))
	above = path
	sub(/\/[^\/]*$/, "", above)
	text("parent", function_of(above))
	number("sriov_total", first_line(path "/sriov_totalvfs"))
	number("numa_node", first_line(path "/numa_node"))
	add("pci", object())
}

function nic(path, name) {
	text("mac", first_line(path "/address"))
	text("name", name)
	text("pci", function_of(path))
	add("nics", object())
}

function disk(path, name,    owner, bus, blocks) {
	if (first_line(path "/partition") != "") return
	owner = path "/.."
	bus = name ~ /^nvme/ ? "nvme" : path ~ /\/virtio[0-9]+\// ? "virtio" : path ~ /\/ata[0-9]+\// ? "sata" : "scsi"
	text("name", name)
	text("pci", function_of(path))
	text("bus", bus)
	if (bus == "nvme") {
		text("model", first_line(owner "/model"))
		text("serial", first_line(owner "/serial"))
	} else {
		text("model", first_line(path "/device/model"))
		text("serial", first_line(path "/serial"))
	}
	blocks = first_line(path "/size") # always of 512 bytes
	if (blocks ~ /^[0-9]+$/) member("size_bytes", sprintf("%.0f", blocks * 512))
	number("block_bytes", first_line(path "/queue/logical_block_size"))
	add("disks", object())
}

BEGIN { PCI = "^[0-9a-f][0-9a-f][0-9a-f][0-9a-f]:[0-9a-f][0-9a-f]:[01][0-9a-f][.][0-7]$" }

# lrwxrwxrwx … NAME -> ../../devices/pci0000:00/…
/ -> .*\/devices\/.*[.][0-7]/ {
	name = $(NF - 2)
	path = $NF
	sub(/^.*\/devices\//, sys "/devices/", path)
	if (name ~ PCI) pci(path, name)
	else if (path ~ /\/net\//) nic(path, name)
	else if (path ~ /\/(block|nvme)\//) disk(path, name)
	next
}

/^(model name|vendor_id|physical id|cpu cores|siblings)[ \t]*:/ {
	key = $0
	sub(/[ \t]*:.*$/, "", key)
	value = $0
	sub(/^[^:]*:[ \t]*/, "", value)
	if (key == "physical id" && !(value in socket)) { socket[value]; sockets++ }
	cpu[key] = value
}

END {
	dmi("manufacturer", "sys_vendor"); dmi("product", "product_name"); dmi("version", "product_version")
	dmi("serial", "product_serial"); dmi("uuid", "product_uuid"); dmi("sku", "product_sku")
	dmi("family", "product_family")
	printf "{\"system\":%s", object()
	text("kind", kind)
	dmi("vendor", "bios_vendor"); dmi("version", "bios_version"); dmi("date", "bios_date")
	dmi("release", "bios_release")
	printf ",\"firmware\":%s", object()
	dmi("manufacturer", "board_vendor"); dmi("product", "board_name"); dmi("version", "board_version")
	dmi("serial", "board_serial")
	printf ",\"board\":%s", object()
	dmi("manufacturer", "chassis_vendor"); dmi("version", "chassis_version"); dmi("serial", "chassis_serial")
	dmi("asset", "chassis_asset_tag")
	printf ",\"enclosure\":%s", object()
	text("name", cpu["model name"])
	text("vendor", cpu["vendor_id"] == "GenuineIntel" ? "Intel" : cpu["vendor_id"] == "AuthenticAMD" ? "AMD" : "")
	if (match(cpu["model name"], /@ [0-9.]+GHz/)) {
		member("mhz", sprintf("%d", substr(cpu["model name"], RSTART + 2, RLENGTH - 5) * 1000))
	}
	if (sockets && cpu["cpu cores"] && cpu["siblings"] % cpu["cpu cores"] == 0) {
		number("sockets", sockets)
		number("cores", cpu["cpu cores"])
		number("threads", cpu["siblings"] / cpu["cpu cores"])
	}
	printf ",\"cpu\":%s", object()
	printf ",\"pci\":[%s],\"nics\":[%s],\"disks\":[%s]}\n", lists["pci"], lists["nics"], lists["disks"]
}
