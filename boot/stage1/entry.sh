# Finds the boot entry on mounted file systems. Sourced by init, and by its tests.
# Everything here reads the tenant's disk on the tenant's machine: nothing is trusted, nothing is executed.

HERE=${HERE:-/nicagent}
DISK=${DISK:-/disk} # its file systems are mounted below

# boot_entry MOUNTPOINT: prints the default entry ("linux …", "initrd …", "options …"), status 1 when there is none.
boot_entry() {
	for dir in boot/grub grub boot/grub2 grub2; do
		[ -f "$1/$dir/grub.cfg" ] || continue
		envfile=
		[ -f "$1/$dir/grubenv" ] && envfile=$1/$dir/grubenv
		awk -v env="$envfile" -f "$HERE/bootentry.awk" "$1/$dir/grub.cfg" && return 0
	done
	for dir in loader boot/loader; do
		[ -d "$1/$dir/entries" ] || continue
		conf=$(bls_default "$1" "$dir")
		[ -n "$conf" ] && awk -v env="$(first_file "$1"/grub2/grubenv "$1"/boot/grub2/grubenv)" \
			-f "$HERE/bls.awk" "$conf" && return 0
	done
	return 1
}

# The entry that loader.conf or grubenv names, else the one with the highest version in its name.
bls_default() {
	want=$(awk '$1 == "default" { print $2 }' "$1/$2/loader.conf" 2>/dev/null | tail -n 1)
	[ -n "$want" ] || want=$(sed -n 's/^saved_entry=//p' "$1/grub2/grubenv" "$1/boot/grub2/grubenv" 2>/dev/null | tail -n 1)
	case $want in */*) want= ;; esac
	if [ -n "$want" ]; then
		for conf in "$1/$2"/entries/${want%.conf}.conf; do
			[ -f "$conf" ] && { echo "$conf"; return; }
		done
	fi
	ls "$1/$2"/entries/*.conf 2>/dev/null | sort -V | tail -n 1
}

first_file() {
	for file; do
		[ -f "$file" ] && { echo "$file"; return; }
	done
}

# fs_type DEVICE: the kernel's name of the file system on it, by its magic number; status 1 when we know none.
fs_type() {
	case $(bytes_at "$1" 1080 2) in 53ef) echo ext4; return ;; esac
	case $(bytes_at "$1" 0 4) in 58465342) echo xfs; return ;; esac
	case $(bytes_at "$1" 82 5)/$(bytes_at "$1" 54 4) in
	4641543332/* | */46415431) echo vfat; return ;;
	esac
	case $(bytes_at "$1" 65600 8) in 5f42485266535f4d) echo btrfs; return ;; esac
	return 1
}

bytes_at() { dd if="$1" bs=1 skip="$2" count="$3" 2>/dev/null | xxd -p; }

# module_files MODULES_DIR NAME…: paths of the modules and all they need, in loading order; built-in ones are left
# out; status 1 names one that the kernel lacks.
module_files() {
	dir=$1
	shift
	awk -v want="$*" '
		function key(path) { sub(/.*\//, "", path); sub(/\.ko(\.[a-z0-9]+)?:?$/, "", path); gsub(/-/, "_", path); return path }
		FILENAME ~ /builtin$/ { inside[key($1)] = 1; next }
		{ path = $1; sub(/:$/, "", path); of[key($1)] = path; $1 = ""; needs[path] = $0 }
		END {
			n = split(want, names, " ")
			for (i = 1; i <= n; i++) {
				name = key(names[i])
				if (!(name in of)) {
					if (name in inside) continue
					print name > "/dev/stderr"
					exit 1
				}
				count = split(needs[of[name]], list, " ")
				for (j = count; j >= 1; j--) if (!seen[list[j]]++) print list[j]
				if (!seen[of[name]]++) print of[name]
			}
		}' "$dir/modules.builtin" "$dir/modules.dep"
}

# on_disk PATH…: where a path of the boot entry, or one below a root, really lies
on_disk() {
	for dir in "$DISK"/*; do
		for path; do
			[ -e "$dir$path" ] && { echo "$dir$path"; return 0; }
		done
	done
	return 1
}

# can_prove_itself VERSION: whether the disk's kernel has an initiator that can; so it is believed if nothing tells.
can_prove_itself() {
	set -- "$(on_disk "/boot/config-$1" "/config-$1" "/lib/modules/$1/config" "/usr/lib/modules/$1/config")"
	[ -z "$1" ] || grep -q '^CONFIG_NVME_HOST_AUTH=y' "$1"
}
