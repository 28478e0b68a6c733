# One Boot Loader Specification entry (uapi-group.org, type #1): loader/entries/*.conf. Prints what bootentry.awk
# prints. -v env=FILE names a grubenv, whose variables (Fedora's $kernelopts) stand in the options.

BEGIN {
	if (env != "")
		while ((getline line < env) > 0)
			if (line ~ /^[A-Za-z_][A-Za-z0-9_]*=/) {
				at = index(line, "=")
				var[substr(line, 1, at - 1)] = substr(line, at + 1)
			}
}

/^[ \t]*#/ { next }
$1 == "linux" && NF == 2 { linux = $2 }
$1 == "initrd" { for (i = 2; i <= NF; i++) initrd[++count] = $i }
$1 == "options" {
	for (i = 2; i <= NF; i++) {
		word = $i
		if (word ~ /^\$/) { name = word; gsub(/[${}]/, "", name); word = var[name] }
		if (word != "") options = options (options == "" ? "" : " ") word
	}
}

END {
	if (linux == "") exit 1
	print "linux " linux
	for (i = 1; i <= count; i++) if (initrd[i] !~ /^\$/) print "initrd " initrd[i]
	print "options " options
}
