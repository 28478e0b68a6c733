"""nicagent: an elastic bare-metal controller that makes a physical server look like a VM."""
