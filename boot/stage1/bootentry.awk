# Which kernel would the disk's own boot loader start? Reads a grub.cfg the way GRUB's script engine does, as far
# as generators write it: quoting, variables, if/else, functions (skipped), menuentry and submenu.
# -v env=FILE names the grubenv. Prints "linux PATH", "initrd PATH" (any number), "options TEXT" of the default
# entry; nothing, with exit status 1, when no entry has a kernel.

BEGIN {
	# What a current GRUB on UEFI says about itself.
	var["feature_menuentry_id"] = var["feature_all_video_module"] = var["feature_timeout_style"] = "y"
	var["grub_platform"] = "efi"
	var["prefix"] = "/boot/grub"
	if (env != "")
		while ((getline line < env) > 0)
			if (line ~ /^[A-Za-z_][A-Za-z0-9_]*=/) {
				split_at = index(line, "=")
				var[substr(line, 1, split_at - 1)] = substr(line, split_at + 1)
			}
	depth = 0; ifs = 0; count[0] = 0; entries = 0
}

{
	# A backslash at the end joins lines.
	if (sub(/\\$/, "")) { held = held $0; next }
	parse(held $0)
	held = ""
}

END {
	chosen = pick(var["default"])
	if (!chosen) exit 1
	print "linux " linux[chosen]
	n = split(initrd[chosen], list, "\n")
	for (i = 1; i <= n; i++) if (list[i] != "") print "initrd " list[i]
	print "options " options[chosen]
}

# Splits a line into words and runs each command of it.
function parse(text,    i, c, quote, word, open, name) {
	words = 0; word = ""; open = 0; quote = ""
	for (i = 1; i <= length(text); i++) {
		c = substr(text, i, 1)
		if (quote == "'") {
			if (c == "'") quote = ""; else word = word c
		} else if (c == "\\") {
			word = word substr(text, ++i, 1); open = 1
		} else if (c == "$") {
			name = ""
			if (substr(text, i + 1, 1) == "{") {
				i += 2
				while (i <= length(text) && (c = substr(text, i, 1)) != "}") { name = name c; i++ }
			} else
				while (substr(text, i + 1, 1) ~ /[A-Za-z0-9_?]/) name = name substr(text, ++i, 1)
			if (quote == "\"") { word = word var[name]; open = 1 }
			else if (var[name] != "") { expand(word, var[name]); word = tail; open = (word != "") }
		} else if (quote == "\"") {
			if (c == "\"") quote = ""; else word = word c
		} else if (c == "'" || c == "\"") {
			quote = c; open = 1
		} else if (c == "#" && !open) {
			break
		} else if (c == ";" || c == " " || c == "\t") {
			if (open) { W[++words] = word; word = ""; open = 0 }
			if (c == ";") { run(); words = 0 }
		} else {
			word = word c; open = 1
		}
	}
	if (open) W[++words] = word
	run()
}

# An unquoted variable falls apart into words, as in any shell: all but the last are complete.
function expand(head, value,    parts, n, i) {
	n = split(value, parts, /[ \t]+/)
	parts[1] = head parts[1]
	for (i = 1; i < n; i++) if (parts[i] != "") W[++words] = parts[i]
	tail = parts[n]
}

# Drops the first word.
function shift(    i) {
	for (i = 1; i < words; i++) W[i] = W[i + 1]
	words--
}

function live(    i) {
	for (i = 1; i <= ifs; i++) if (!taken[i]) return 0
	for (i = 1; i <= depth; i++) if (kind[i] == "function") return 0
	return 1
}

function run(    i, at, first) {
	while (words && (W[1] == "then" || W[1] == "else" || W[1] == "do")) {
		if (W[1] == "else") { taken[ifs] = !done[ifs]; done[ifs] = 1 }
		shift()
	}
	if (!words) return
	first = W[1]
	if (first == "if") { ifs++; shift(); taken[ifs] = done[ifs] = truth(); return }
	if (first == "elif") { shift(); taken[ifs] = !done[ifs] && truth(); done[ifs] = done[ifs] || taken[ifs]; return }
	if (first == "fi") { if (ifs) ifs--; return }
	if (first == "}") { if (depth) depth--; return }
	if (first == "function" || first == "menuentry" || first == "submenu") { block(first); return }
	if (!live()) return
	if (first == "set") { shift(); first = W[1] }
	if (words == 1 && (at = index(first, "=")) > 1 && substr(first, 1, at - 1) ~ /^[A-Za-z_][A-Za-z0-9_]*$/) {
		var[substr(first, 1, at - 1)] = substr(first, at + 1)
		return
	}
	if (!depth || kind[depth] != "menuentry") return
	if (first ~ /^linux(16|efi)?$/ && words > 1) {
		linux[entries] = plain(W[2])
		options[entries] = ""
		for (i = 3; i <= words; i++) options[entries] = options[entries] (i > 3 ? " " : "") W[i]
	} else if (first ~ /^initrd(16|efi)?$/)
		for (i = 2; i <= words; i++) initrd[entries] = initrd[entries] plain(W[i]) "\n"
}

# Path without its device: ($root)/boot/x → /boot/x
function plain(path) { sub(/^\(+[^)]*\)+/, "", path); return path }

# "[ A = B ]" and its kin. What asks about files is answered no, but for the grubenv we have read.
function truth(    i, from, all) {
	all = 1
	if (W[1] == "[" || W[1] == "test") shift()
	if (words && W[words] == "]") words--
	from = 1
	for (i = 1; i <= words + 1; i++)
		if (i > words || W[i] == "-a") { all = all && simple(from, i - 1); from = i + 1 }
		else if (W[i] == "-o") { if (all && simple(from, i - 1)) return 1; all = 1; from = i + 1 }
	return all
}

function simple(from, to,    n) {
	n = to - from + 1
	if (n >= 1 && W[from] == "!") return !simple(from + 1, to)
	if (n == 3 && (W[from + 1] == "=" || W[from + 1] == "==")) return W[from] == W[to]
	if (n == 3 && W[from + 1] == "!=") return W[from] != W[to]
	if (n == 2 && W[from] == "-n") return W[to] != ""
	if (n == 2 && W[from] == "-z") return W[to] == ""
	if (n == 2 && W[from] == "-s") return W[to] ~ /grubenv$/
	return n == 1 && W[from] != ""
}

# Opens a block; an entry remembers all its names at every level: number, title, --id.
function block(what,    i, title, id) {
	depth++
	kind[depth] = what
	count[depth] = 0
	if (what == "function" || !live()) { if (what != "function") kind[depth] = "function"; return }
	for (i = 2; i <= words; i++) {
		if (W[i] == "--id") id = W[++i]
		else if (W[i] == "$menuentry_id_option") id = W[++i]
		else if (W[i] == "--class" || W[i] == "--users" || W[i] == "--hotkey") i++
		else if (W[i] ~ /^--|^\{$/) continue
		else if (title == "") title = W[i]
	}
	level[depth] = "\n" count[depth - 1]++ "\n" title "\n" (id == "" ? "" : id "\n")
	if (what == "menuentry") {
		entries++
		levels[entries] = depth
		for (i = 1; i <= depth; i++) names[entries, i] = level[i]
	}
}

# The entry that `default` names: "0", "1>2", a title, an id; else the first one with a kernel.
function pick(want,    parts, n, e, i, fits) {
	n = split(want, parts, />+/)
	for (e = 1; n && e <= entries; e++) {
		fits = (e in linux) && n <= levels[e]
		for (i = 1; fits && i <= n; i++) fits = index(names[e, i], "\n" parts[i] "\n")
		if (fits) return e
	}
	# Tools also store the bare id of an entry inside a submenu.
	for (e = 1; n == 1 && e <= entries; e++)
		if ((e in linux) && index(names[e, levels[e]], "\n" want "\n") && want !~ /^[0-9]+$/) return e
	for (e = 1; e <= entries; e++) if (e in linux) return e
	return 0
}
