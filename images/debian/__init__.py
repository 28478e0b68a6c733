"""The emulated servers' operating system: an ordinary Debian cloud image. See README.md beside this file."""
